//! The kernel's symbols: which functions can be probed by name, and where callers lie in memory.

use std::collections::BTreeSet;
use std::io::{self, BufRead};

use ctwatch_ebpf::Caller;
use serde::{Deserialize, Serialize};

use super::{
    arch,
    hooks::{self, ALLOC, FLOOR, RATELIMIT, RECEIVE, REMOVAL},
    kcore, lookup,
    module_symbols::{Function, Module},
};

/// Callers of `nf_ct_delete` that tell why an entry goes, in the order in which a busy server
/// meets them (5.10 to 7.3; functions that only some builds have as symbols included).
const CALLER_NAMES: [(&str, Caller); 27] = [
    ("early_drop", Caller::EarlyDrop),
    ("nf_conntrack_tcp_packet", Caller::Closed),
    ("nf_ct_delete", Caller::Itself),
    ("early_drop_list", Caller::EarlyDrop),
    ("nf_ct_gc_expired", Caller::Expiry),
    ("gc_worker", Caller::Collector),
    ("nf_ct_kill_acct", Caller::Closed),
    ("__nf_ct_kill_acct", Caller::Closed),
    ("nf_conntrack_sctp_packet", Caller::Closed),
    ("nf_conntrack_dccp_packet", Caller::Closed),
    ("ctnetlink_del_conntrack", Caller::Netlink),
    ("nf_ct_iterate_cleanup", Caller::Iterate),
    ("nf_ct_iterate_cleanup_net", Caller::Iterate),
    ("nf_ct_iterate_cleanup_net_ext", Caller::Iterate),
    ("nf_ct_iterate_destroy", Caller::Iterate),
    ("nf_conntrack_cleanup_net_list", Caller::Iterate),
    ("nf_conntrack_cleanup_net", Caller::Iterate),
    ("ctnetlink_flush_conntrack", Caller::Iterate),
    ("ct_seq_show", Caller::Expiry),
    ("ctnetlink_dump_table", Caller::Expiry),
    // `tcf_ct_skb_nfct_cached` is a part of the first, `skb_nfct_cached` one of the next three.
    ("tcf_ct_act", Caller::Tc),
    ("tcf_ct_skb_nfct_cached", Caller::Tc),
    ("ovs_ct_execute", Caller::Openvswitch),
    ("__ovs_ct_lookup", Caller::Openvswitch),
    ("skb_nfct_cached", Caller::Openvswitch),
    ("ip_vs_conn_drop_conntrack", Caller::Ipvs),
    ("__nf_conntrack_alloc", Caller::Alloc),
];

/// The fewest and the most bytes that a function may have to be looked at.
const LOOKED_AT: std::ops::RangeInclusive<u64> = 16..=16 << 10;

/// What `/proc/kallsyms` says of connection tracking.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symbols {
    /// The watched functions that exist, by full name (`nf_ct_delete.part.0`).
    pub watched: Vec<String>,
    /// Text of the callers of `nf_ct_delete`, most frequent first.
    pub callers: Vec<CallerText>,
    /// Where the function that takes an entry out of the table begins; 0 where unknown.
    #[serde(default)]
    pub removal: u64,
    /// Where `net_ratelimit` begins; 0 where unknown.
    #[serde(default)]
    pub ratelimit: u64,
    /// Where the variable with the preemption mode lies; 0 where unknown. Of use only while facts are read.
    #[serde(skip)]
    pub preemption: u64,
    /// Whether the kernel hid the addresses (`kernel.kptr_restrict`, or no CAP_SYSLOG).
    pub hidden: bool,
}

/// Where one caller's code lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallerText {
    /// The symbol, suffixes included.
    pub symbol: String,
    /// What its asking means.
    pub caller: Caller,
    /// First address.
    pub start: u64,
    /// The next symbol's address.
    pub end: u64,
}

impl CallerText {
    /// Its machine code, where it may be read.
    fn code(&self) -> Option<Vec<u8>> {
        LOOKED_AT.contains(&self.size()).then(|| kcore::read(self.start, self.end).ok())?
    }

    /// In bytes.
    const fn size(&self) -> u64 {
        self.end - self.start
    }
}

/// An address, unless it is unknown.
fn known(address: u64) -> Option<u64> {
    Some(address).filter(|address| *address != 0)
}

/// Where `pt_regs` at the entry of `net_ratelimit` holds what `__nf_conntrack_alloc` was called for, in
/// bytes, where the caller's code could be read and followed: a refusal then needs no hook of its own
/// on what every new flow passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Newcomer {
    /// The namespace.
    pub net: u32,
    /// The zone.
    pub zone: u32,
    /// The original tuple.
    pub orig: u32,
}

/// A symbol without what the compiler appended (`.part.0`, `.isra.0`, `.cold`, …).
pub fn base_name(symbol: &str) -> &str {
    symbol.split_once('.').map_or(symbol, |(base, _)| base)
}

/// Symbols of the kernel image that are of use where connection tracking is a module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Image {
    functions: [u64; 3],
    preemption: u64,
}

impl Image {
    const FUNCTIONS: [&str; 3] = [RATELIMIT.name(), RECEIVE.name(), FLOOR.name()];

    /// Asks the kernel for them. An error where it does not show any address.
    pub(super) fn look_up() -> io::Result<Self> {
        let [ratelimit, receive, floor] = Self::FUNCTIONS;
        let [ratelimit, receive, floor, preemption] =
            lookup::addresses([ratelimit, receive, floor, PREEMPTION])?;
        if ratelimit == 0 {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self { functions: [ratelimit, receive, floor], preemption })
    }
}

/// The variable with the preemption mode (kernel/sched/core.c, 5.12 to 7.3).
const PREEMPTION: &str = "preempt_dynamic_mode";

/// Whether a module is part of connection tracking or removes entries; each may be built in as well. A function of the
/// same name in another module is somebody else's.
pub(super) fn is_ours(module: &str) -> bool {
    module.starts_with("nf_conntrack") || matches!(module, "nf_nat" | "act_ct" | "openvswitch" | "ip_vs")
}

/// The same as [`read`] finds, from the modules' own tables and what the kernel was asked for. `None` where the module of
/// connection tracking is not among them.
pub(super) fn gather(modules: &[Module], image: Image) -> Option<Symbols> {
    modules.iter().find(|module| module.name == "nf_conntrack")?;
    let mut found = Search::new();
    for (name, address) in Image::FUNCTIONS.into_iter().zip(image.functions) {
        if address != 0 {
            found.pass(address);
            found.note(address, name, None);
        }
    }
    for module in modules {
        let mut end = 0;
        for Function { address, size, name } in module.functions() {
            end = end.max(address.saturating_add(size));
            found.pass(address);
            if found.may_want(name)
                && let Ok(name) = str::from_utf8(name)
            {
                found.note(address, name, Some(&module.name));
            }
        }
        // Nothing follows the last one in this table.
        found.starts.push(end);
    }
    found.symbols.preemption = image.preemption;
    Some(found.end())
}

/// Reads the text of `/proc/kallsyms`, line by line: it has some 10 MB.
pub fn read(mut text: impl BufRead) -> io::Result<Symbols> {
    let mut found = Search::new();
    let mut line = Vec::new();
    while text.read_until(b'\n', &mut line)? > 0 {
        if let Some((address, name)) = function(&line) {
            found.pass(address);
            if found.may_want(name)
                && let Ok(name) = str::from_utf8(name)
            {
                let mut words = name.split_ascii_whitespace();
                let symbol = words.next().unwrap_or_default();
                found.note(address, symbol, words.next().map(|module| module.trim_matches(['[', ']'])));
            }
        }
        if let Some(address) = preemption_variable(&line) {
            found.symbols.preemption = address;
        }
        line.clear();
    }
    Ok(found.end())
}

/// What was found among the symbols so far.
struct Search {
    watched: BTreeSet<&'static str>,
    prefixes: Vec<[u8; 4]>,
    /// Where functions begin, all of them.
    starts: Vec<u64>,
    symbols: Symbols,
    /// Rank, symbol and address.
    callers: Vec<(usize, String, u64)>,
}

impl Search {
    fn new() -> Self {
        let watched = hooks::functions();
        Self {
            prefixes: prefixes(&watched),
            watched,
            starts: Vec::new(),
            symbols: Symbols { hidden: true, ..Symbols::default() },
            callers: Vec::new(),
        }
    }

    /// A function, whatever it is called.
    fn pass(&mut self, address: u64) {
        self.symbols.hidden &= address == 0;
        self.starts.push(address);
    }

    /// Whether a function may be one that is looked for, by the first bytes of its name.
    fn may_want(&self, name: &[u8]) -> bool {
        name.first_chunk().is_some_and(|prefix| self.prefixes.contains(prefix))
    }

    /// Keeps a function that is looked for, with its address.
    fn note(&mut self, address: u64, symbol: &str, module: Option<&str>) {
        if module.is_some_and(|module| !is_ours(module)) {
            return;
        }
        let base = base_name(symbol);
        if self.watched.contains(base) && !symbol.split('.').any(|part| part == "cold") {
            self.symbols.watched.push(symbol.to_owned());
        }
        if symbol == REMOVAL.name() {
            self.symbols.removal = address;
        } else if symbol == RATELIMIT.name() {
            self.symbols.ratelimit = address;
        }
        if let Some(rank) = CALLER_NAMES.iter().position(|(name, _)| *name == base) {
            self.callers.push((rank, symbol.to_owned(), address));
        }
    }

    /// All of it. A function ends where the next one begins.
    fn end(self) -> Symbols {
        let Self { starts, mut symbols, mut callers, .. } = self;
        callers.sort();
        symbols.watched.sort();
        symbols.watched.dedup();
        let next =
            |start: u64| starts.iter().copied().filter(|other| *other > start).min().unwrap_or(u64::MAX);
        symbols.callers = callers
            .into_iter()
            .filter(|(.., start)| *start != 0)
            .map(|(rank, symbol, start)| CallerText {
                symbol,
                caller: CALLER_NAMES[rank].1,
                start,
                end: next(start),
            })
            .collect();
        symbols
    }
}

/// How the names begin that are looked for: enough to pass over nearly all others at once.
fn prefixes(watched: &BTreeSet<&str>) -> Vec<[u8; 4]> {
    let names = watched.iter().copied().chain(CALLER_NAMES.map(|(name, _)| name));
    let mut prefixes: Vec<[u8; 4]> =
        names.filter_map(|name| name.as_bytes().first_chunk().copied()).collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes
}

/// A line's address, and its name with what follows, where it is one of a function.
fn function(line: &[u8]) -> Option<(u64, &[u8])> {
    let end = line.iter().position(|byte| *byte == b' ')?;
    let mut address = 0;
    for digit in &line[..end] {
        address = address << 4 | u64::from((*digit as char).to_digit(16)?);
    }
    match line[end..] {
        [_, b't' | b'T' | b'w' | b'W', b' ', ref name @ ..] => Some((address, name)),
        _ => None,
    }
}

/// The address of [`PREEMPTION`]. Its kind differs: data, or text where its section lies there (7.3).
fn preemption_variable(line: &[u8]) -> Option<u64> {
    let line = line.trim_ascii_end().strip_suffix(PREEMPTION.as_bytes())?.strip_suffix(b" ")?;
    let digits = str::from_utf8(line.get(..line.iter().position(|byte| *byte == b' ')?)?).ok()?;
    u64::from_str_radix(digits, 16).ok()
}

impl Symbols {
    /// The full names under which a function exists.
    pub fn names<'a>(&'a self, function: &str) -> impl Iterator<Item = &'a str> {
        self.watched.iter().map(String::as_str).filter(move |symbol| base_name(symbol) == function)
    }

    /// Whether a function exists under its plain name, with the registers its prototype says.
    pub fn has(&self, function: &str) -> bool {
        self.watched.iter().any(|symbol| symbol == function)
    }

    /// Where the preemption mode can be read.
    pub(super) fn preemption_variable(&self) -> Option<u64> {
        known(self.preemption)
    }

    /// See [`super::facts::Facts::delete_frame`]. Only where the function is in one piece.
    pub(super) fn delete_frame(&self) -> Option<u32> {
        let mut whole = self.callers.iter().filter(|text| text.caller == Caller::Itself);
        let (Some(text), None) = (whole.next(), whole.next()) else { return None };
        arch::distance(&text.code()?, text.start, known(self.removal)?)
    }

    /// See [`Newcomer`]. Each part of the function must be readable: a call from a part that was not followed could find
    /// something else in the registers.
    pub(super) fn newcomer(&self) -> Option<Newcomer> {
        let parts = self.parts_of_alloc()?;
        let codes = parts.iter().map(|text| kcore::read(text.start, text.end).ok());
        let codes = codes.collect::<Option<Vec<_>>>()?;
        let piece = |(text, code)| {
            let (text, code): (&&CallerText, &Vec<u8>) = (text, code);
            arch::Piece { start: text.start, code }
        };
        let pieces: Vec<arch::Piece<'_>> = parts.iter().zip(&codes).map(piece).collect();
        let [net, zone, orig, ..] = arch::arguments(&pieces, known(self.ratelimit)?);
        Some(Newcomer { net: net?, zone: zone?, orig: orig? })
    }

    /// The text of `__nf_conntrack_alloc`, and behind it what the compiler moved away. `None` where some of it is a
    /// function of its own (`.part.0`), which has other registers.
    fn parts_of_alloc(&self) -> Option<Vec<&CallerText>> {
        let mut parts: Vec<&CallerText> =
            self.callers.iter().filter(|text| text.caller == Caller::Alloc).collect();
        parts.sort_by_key(|text| text.symbol != ALLOC.name());
        let (whole, moved) = parts.split_first()?;
        let is_moved = |text: &&CallerText| {
            text.symbol.strip_prefix(whole.symbol.as_str()) == Some(".cold")
                && text.size() <= *LOOKED_AT.end()
        };
        let found =
            whole.symbol == ALLOC.name() && LOOKED_AT.contains(&whole.size()) && moved.iter().all(is_moved);
        found.then_some(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Symbols {
        read(text.as_bytes()).unwrap()
    }

    const TEXT: &str = "\
ffffffff81000000 T _text
ffffffff81000040 t gc_worker
ffffffff81000080 T other
ffffffffc0001100 t early_drop\t[nf_conntrack]
ffffffffc0001000 t nf_ct_delete.part.0\t[nf_conntrack]
ffffffffc0001200 T nf_ct_delete\t[nf_conntrack]
ffffffffc0001300 t gc_worker\t[nf_conntrack]
ffffffffc0001340 t gc_worker.cold\t[nf_conntrack]
ffffffffc0001380 d gc_worker_data\t[nf_conntrack]
ffffffffc0001400 T nf_conntrack_hash_check_insert\t[nf_conntrack]
ffffffffc0009000 t early_drop\t[some_driver]
ffffffff82000010 D preempt_dynamic_mode
ffffffff82000020 D not_preempt_dynamic_mode
";

    #[test]
    fn a_caller_ends_where_the_next_symbol_begins() {
        let symbols = parse(TEXT);
        let early = symbols.callers.iter().find(|text| text.symbol == "early_drop").unwrap();
        assert_eq!(early.start, 0xffff_ffff_c000_1100);
        assert_eq!(early.end, 0xffff_ffff_c000_1200);
        assert_eq!(symbols.callers[0].caller, Caller::EarlyDrop, "what a busy server meets most often");
    }

    #[test]
    fn another_modules_function_of_the_same_name_is_not_ours() {
        let symbols = parse(TEXT);
        let early = symbols.callers.iter().filter(|text| text.symbol == "early_drop");
        assert_eq!(early.count(), 1);
    }

    #[test]
    fn split_functions_are_found_by_their_base_name() {
        let symbols = parse(TEXT);
        assert_eq!(
            symbols.names("nf_ct_delete").collect::<Vec<_>>(),
            ["nf_ct_delete", "nf_ct_delete.part.0"]
        );
        assert!(!symbols.has("__nf_conntrack_hash_insert"));
        assert!(!symbols.hidden);
    }

    #[test]
    fn the_preemption_mode_is_found_whatever_kind_of_symbol_it_is() {
        assert_eq!(parse(TEXT).preemption_variable(), Some(0xffff_ffff_8200_0010));
        assert_eq!(
            parse("ffffffff84070388 T preempt_dynamic_mode\n").preemption_variable(),
            Some(0xffff_ffff_8407_0388)
        );
        assert_eq!(parse("0000000000000000 D preempt_dynamic_mode\n").preemption_variable(), None);
        assert_eq!(parse(" preempt_dynamic_mode\n").preemption_variable(), None);
    }

    #[test]
    fn refusals_need_every_part_of_their_function() {
        let of = |lines: &str| {
            let symbols = parse(&format!("{lines}ffffffffc0003000 t next\t[nf_conntrack]\n"));
            let parts = symbols.parts_of_alloc();
            parts.map(|parts| parts.iter().map(|part| part.symbol.clone()).collect::<Vec<_>>())
        };
        let whole = "ffffffffc0002000 t __nf_conntrack_alloc\t[nf_conntrack]\n";
        let cold = "ffffffffc0001000 t __nf_conntrack_alloc.cold\t[nf_conntrack]\n";
        assert_eq!(of(whole).unwrap(), ["__nf_conntrack_alloc"]);
        assert_eq!(
            of(&format!("{cold}{whole}")).unwrap(),
            ["__nf_conntrack_alloc", "__nf_conntrack_alloc.cold"]
        );
        assert_eq!(of(cold), None, "only the part that was moved away");
        let part = "ffffffffc0001000 t __nf_conntrack_alloc.part.0\t[nf_conntrack]\n";
        assert_eq!(of(&format!("{part}{whole}")), None, "a function of its own");
    }

    #[test]
    fn hidden_addresses_are_noticed() {
        let hidden = TEXT.replace("ffffffff", "00000000").replace("c000", "0000");
        let zero =
            hidden.lines().fold(String::new(), |text, line| text + "0000000000000000" + &line[16..] + "\n");
        let symbols = parse(&zero);
        assert!(symbols.hidden);
        assert!(symbols.callers.is_empty());
        assert!(symbols.has("nf_ct_delete"));
    }
}
