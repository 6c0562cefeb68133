//! HTML whose texts cannot be anything else: the only way to put a text of others in is [`Html::text`].

use std::fmt::Write as _;

use crate::view::clean::clean;

/// A piece of a page.
#[derive(Debug, Default)]
pub(super) struct Html(String);

impl Html {
    pub(super) const fn new() -> Self {
        Self(String::new())
    }

    /// Mark-up of our own.
    pub(super) fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// A text, whoever wrote it.
    pub(super) fn text(&mut self, text: &str) -> &mut Self {
        self.0 += &escaped(text);
        self
    }

    /// An element with a text in it.
    pub(super) fn element(&mut self, name: &'static str, text: &str) -> &mut Self {
        // Writing to a string cannot fail.
        let _ = write!(self.0, "<{name}>{}</{name}>", escaped(text));
        self
    }

    /// A drawing that [`super::chart`] made, whose texts are escaped already.
    pub(super) fn drawing(&mut self, svg: &str) -> &mut Self {
        self.0.push_str(svg);
        self
    }

    /// A table; columns from the second on are numbers where `numbers` says so.
    pub(super) fn table(&mut self, head: &[&str], rows: &[Vec<String>], numbers: bool) -> &mut Self {
        if rows.is_empty() {
            return self.raw("<p>None.</p>");
        }
        self.raw("<div class=scroll tabindex=0>");
        self.raw(if numbers { "<table class=numbers><thead><tr>" } else { "<table><thead><tr>" });
        for cell in head {
            self.element("th", cell);
        }
        self.raw("</tr></thead><tbody>");
        for row in rows {
            self.raw("<tr>");
            for (at, cell) in row.iter().enumerate() {
                self.raw(if numbers && at > 0 { "<td class=n>" } else { "<td>" }).text(cell).raw("</td>");
            }
            self.raw("</tr>");
        }
        self.raw("</tbody></table></div>")
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }
}

/// Safe between tags and in quoted attributes.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in clean(text).chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_text_ends_its_place(text: String) {
            let mut html = Html::new();
            html.element("td", &text);
            let inner = html.into_string();
            let inner = inner.strip_prefix("<td>").and_then(|rest| rest.strip_suffix("</td>")).unwrap();
            prop_assert!(!inner.contains(['<', '>', '"', '\'']) && !inner.contains(char::is_control));
        }
    }
}
