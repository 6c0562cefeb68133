//! Texts that other programs wrote. A word is shown where it is known, and a number where a known word takes one; all else
//! becomes a mask. So nothing depends on where quotes begin and end.

use std::net::IpAddr;

use super::names::Masks;
use super::words::{NAME_FOLLOWS, NUMBER_FOLLOWS, TARGETS, UNITS, is_known};

/// Characters that stand for themselves.
const SIGNS: &str = "{}(),;=<>!|&^";

/// The text with a mask for each name and address. A rule of iptables begins with the name of its chain.
pub(super) fn mask(text: &str, name_first: bool, masks: &mut Masks) -> String {
    let mut masked =
        Masked { out: String::new(), numbers: false, name_next: name_first, comment: false, masks };
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        rest = masked.step(first, rest);
    }
    masked.out.trim_end().to_owned()
}

struct Masked<'a> {
    out: String,
    /// Whether numbers may stand here.
    numbers: bool,
    /// Whether a name must stand here, even where it is a known word.
    name_next: bool,
    /// Whether a comment comes: the last thing in a rule of nft, which escapes nothing in it.
    comment: bool,
    masks: &'a mut Masks,
}

impl Masked<'_> {
    /// Takes something from the beginning of the text; what is left.
    fn step<'a>(&mut self, first: char, rest: &'a str) -> &'a str {
        if first.is_whitespace() || first.is_control() {
            if !self.out.is_empty() && !self.out.ends_with(' ') {
                self.out.push(' ');
            }
            return &rest[first.len_utf8()..];
        }
        if first == '"' {
            return self.quoted(&rest[1..]);
        }
        if SIGNS.contains(first) {
            self.out.push(first);
            return &rest[first.len_utf8()..];
        }
        let ends =
            |char: char| char.is_whitespace() || char.is_control() || char == '"' || SIGNS.contains(char);
        let (word, rest) = rest.split_at(rest.find(ends).unwrap_or(rest.len()));
        self.word(word);
        rest
    }

    fn quoted<'a>(&mut self, rest: &'a str) -> &'a str {
        let mut escaped = false;
        let end = if self.comment {
            rest.trim_end().strip_suffix('"').map(str::len)
        } else {
            rest.find(|char| {
                let literal = std::mem::take(&mut escaped);
                escaped = char == '\\' && !literal;
                char == '"' && !literal
            })
        };
        let (inside, rest) = end.map_or((rest, ""), |end| (&rest[..end], &rest[end + 1..]));
        let name = self.masks.name(&inside.replace('\\', ""));
        self.out.push('"');
        self.out.push_str(&name);
        self.out.push('"');
        (self.numbers, self.name_next, self.comment) = (false, false, false);
        rest
    }

    fn word(&mut self, word: &str) {
        let (body, colon) = match word.strip_suffix(':') {
            Some(body) if !body.is_empty() && !body.ends_with(':') => (body, ":"),
            _ => (word, ""),
        };
        let name_next = std::mem::take(&mut self.name_next);
        if let Some(set) = body.strip_prefix('@') {
            self.out.push('@');
            self.name(set);
        } else if name_next && !TARGETS.contains(&body) {
            self.name(body);
        } else if is_known(body) {
            self.out.push_str(body);
            if !["accept", "drop", ":", "-"].contains(&body) {
                self.numbers = NUMBER_FOLLOWS.contains(&body);
            }
            self.name_next = NAME_FOLLOWS.contains(&body);
            self.comment = body == "comment";
        } else if let Some(address) = address(body, self.masks) {
            self.out.push_str(&address);
        } else if self.numbers && is_number(body) {
            self.out.push_str(body);
        } else {
            self.name(body);
        }
        self.out.push_str(colon);
    }

    fn name(&mut self, name: &str) {
        let mask = self.masks.name(name);
        self.out.push_str(&mask);
        self.numbers = false;
    }
}

/// `ADDRESS`, `ADDRESS/PREFIX`, `ADDRESS-ADDRESS`, any with a port after it, or a MAC address.
pub(super) fn address(word: &str, masks: &mut Masks) -> Option<String> {
    if is_mac(word) {
        return Some(masks.mac(word));
    }
    if let Some((first, second)) = word.split_once('/')
        && let Ok(host) = first.parse::<IpAddr>()
    {
        let host = masks.address(host);
        if let Ok(mask) = second.parse::<IpAddr>() {
            return Some(format!("{host}/{}", masks.address(mask)));
        }
        return second.parse::<u8>().ok().map(|prefix| format!("{host}/{prefix}"));
    }
    if let Ok(host) = word.parse::<IpAddr>() {
        return Some(masks.address(host).to_string());
    }
    let plain = |text: &str| text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
    if let Some((first, second)) = word.split_once('-')
        && let Some(first) = plain(first)
    {
        let first = masks.address(first);
        return address(second, masks).map(|second| format!("{first}-{second}"));
    }
    let (host, port) = word.rsplit_once(':').unwrap_or((word, ""));
    let bracketed = host.starts_with('[');
    let host = plain(host).filter(|host| host.is_ipv4() || bracketed)?;
    let host = masks.address(host);
    let host = if bracketed { format!("[{host}]") } else { host.to_string() };
    match port {
        "" => Some(host),
        port if is_number(port) => Some(format!("{host}:{port}")),
        _ => None,
    }
}

fn is_mac(word: &str) -> bool {
    let byte = |part: &str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    word.split(':').count() == 6 && word.split(':').all(byte)
}

/// `22`, `0x1/0xff`, `1024-65535`, `10/second`, `30s`.
fn is_number(word: &str) -> bool {
    let digits =
        |text: &str| (1..=20).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    let hex = |text: &str| text.len() <= 18 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    word.split(['-', ':', '/']).all(|part| {
        let unit = part.trim_start_matches(|char: char| char.is_ascii_digit());
        digits(part) || part.strip_prefix("0x").is_some_and(hex) || UNITS.contains(&unit)
    })
}
