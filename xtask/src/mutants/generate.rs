//! Which single changes can be made to a source file. Pure.

use std::ops::Range;

use anyhow::{Context as _, Result};
use proc_macro2::{TokenStream, TokenTree};
use syn::spanned::Spanned as _;
use syn::visit::{self, Visit};
use syn::{Attribute, BinOp, Expr};

/// One change to one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mutant {
    /// The function that it is in.
    pub function: String,
    /// Which programs it can be seen in.
    pub part: Part,
    /// Its line, counted from 1.
    pub line: usize,
    /// Bytes of the file that are replaced.
    range: Range<usize>,
    /// What stands there.
    pub from: String,
    /// What replaces it.
    pub to: String,
}

/// Which programs a function belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// A program that a trampoline calls.
    Trampoline,
    /// A program of a kprobe or kretprobe.
    Kprobe,
    /// Code that programs of both kinds use.
    Shared,
}

impl Mutant {
    /// The file with this change.
    pub(super) fn applied(&self, source: &str) -> String {
        let Range { start, end } = self.range;
        [&source[..start], &self.to, &source[end..]].concat()
    }

    /// The change in one line: function, old and new text, without layout.
    pub(super) fn describe(&self) -> String {
        let flat = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        format!("{}: {} -> {}", self.function, flat(&self.from), flat(&self.to))
    }
}

/// All changes of one file: each condition negated, each event and cause exchanged with its neighbour, each body of a
/// program emptied, each arm of a match left out that another one can stand in for.
///
/// # Errors
/// If the file is no Rust.
pub(super) fn mutants(source: &str, events: &[&str]) -> Result<Vec<Mutant>> {
    let file = syn::parse_file(source).context("cannot parse it as Rust")?;
    let mut finder =
        Finder { source, events, function: String::new(), part: Part::Shared, found: Vec::new() };
    finder.visit_file(&file);
    let mut found = finder.found;
    found.sort_by_key(|mutant| (mutant.range.start, mutant.range.end));
    Ok(found)
}

struct Finder<'a> {
    source: &'a str,
    events: &'a [&'a str],
    function: String,
    part: Part,
    found: Vec<Mutant>,
}

impl Finder<'_> {
    fn replace(&mut self, range: Range<usize>, to: impl FnOnce(&str) -> String) {
        let from = self.source[range.clone()].to_owned();
        let line = self.source[..range.start].lines().count().max(1);
        let to = to(&from);
        self.found.push(Mutant { function: self.function.clone(), part: self.part, line, range, from, to });
    }

    /// An event by the next one in the table.
    fn exchange(&mut self, name: &str, range: Range<usize>) {
        if let Some(at) = self.events.iter().position(|event| *event == name) {
            let neighbour = self.events[(at + 1) % self.events.len()];
            self.replace(range, |_| neighbour.to_owned());
        }
    }

    /// The events among the tokens of a macro.
    fn events_in(&mut self, tokens: TokenStream) {
        let mut after_event = false;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    let name = ident.to_string();
                    if after_event {
                        self.exchange(&name, ident.span().byte_range());
                    }
                    after_event = name == "Event";
                }
                TokenTree::Group(group) => self.events_in(group.stream()),
                TokenTree::Punct(punct) => after_event &= punct.as_char() == ':',
                TokenTree::Literal(_) => after_event = false,
            }
        }
    }

    /// A condition, or each operand of a chain of them. What binds a name has no opposite.
    fn negate(&mut self, condition: &Expr) {
        match condition {
            Expr::Binary(binary) if matches!(binary.op, BinOp::And(_) | BinOp::Or(_)) => {
                self.negate(&binary.left);
                self.negate(&binary.right);
            }
            Expr::Let(_) => {}
            Expr::Paren(paren) => self.negate(&paren.expr),
            other => self.replace(other.span().byte_range(), |text| format!("!({text})")),
        }
    }
}

/// Whether an attribute takes this item out of the kernel's half.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.meta.require_list().is_ok_and(|list| {
                let text = list.tokens.to_string();
                text.contains("test") || text.contains("user")
            })
    })
}

/// The kind of program that these attributes make of a function.
fn part(attributes: &[Attribute]) -> Option<Part> {
    attributes.iter().find_map(|attribute| match attribute.path().get_ident()?.to_string().as_str() {
        "fentry" | "fexit" => Some(Part::Trampoline),
        "kprobe" | "kretprobe" => Some(Part::Kprobe),
        _ => None,
    })
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_test(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        if !is_test(&item.attrs) {
            visit::visit_item_impl(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        if is_test(&item.attrs) {
            return;
        }
        self.function = item.sig.ident.to_string();
        let program = part(&item.attrs);
        self.part = program.unwrap_or(Part::Shared);
        if let (Some(_), Some(syn::FnArg::Typed(argument))) = (program, item.sig.inputs.first()) {
            let argument = self.source[argument.pat.span().byte_range()].to_owned();
            self.replace(item.block.span().byte_range(), |_| format!("{{ let _ = {argument}; 0 }}"));
        }
        visit::visit_item_fn(self, item);
        self.part = Part::Shared;
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !is_test(&item.attrs) {
            self.function = item.sig.ident.to_string();
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_expr_if(&mut self, expr: &'ast syn::ExprIf) {
        self.negate(&expr.cond);
        visit::visit_expr_if(self, expr);
    }

    fn visit_expr_while(&mut self, expr: &'ast syn::ExprWhile) {
        self.negate(&expr.cond);
        visit::visit_expr_while(self, expr);
    }

    fn visit_expr_match(&mut self, expr: &'ast syn::ExprMatch) {
        let other = expr.arms.iter().any(|arm| matches!(arm.pat, syn::Pat::Wild(_)) && arm.guard.is_none());
        for arm in &expr.arms {
            if let Some((_, guard)) = &arm.guard {
                self.negate(guard);
            }
            if other && !matches!(arm.pat, syn::Pat::Wild(_)) {
                self.replace(arm.span().byte_range(), |_| String::new());
            }
        }
        visit::visit_expr_match(self, expr);
    }

    fn visit_expr_binary(&mut self, expr: &'ast syn::ExprBinary) {
        let other = match expr.op {
            BinOp::And(_) => "||",
            BinOp::Or(_) => "&&",
            BinOp::AddAssign(_) => "-=",
            _ => "",
        };
        if !other.is_empty() && !contains_let(&expr.left) && !contains_let(&expr.right) {
            self.replace(expr.op.span().byte_range(), |_| other.to_owned());
        }
        visit::visit_expr_binary(self, expr);
    }

    fn visit_macro(&mut self, item: &'ast syn::Macro) {
        if item.path.is_ident("matches") {
            self.events_in(item.tokens.clone());
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if let [kind, name] = names.as_slice()
            && kind == "Event"
            && let Some(last) = path.segments.last()
        {
            self.exchange(name, last.ident.span().byte_range());
        }
        visit::visit_path(self, path);
    }
}

fn contains_let(expr: &Expr) -> bool {
    match expr {
        Expr::Let(_) => true,
        Expr::Binary(binary) => contains_let(&binary.left) || contains_let(&binary.right),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(source: &str) -> Vec<String> {
        let found = mutants(source, &["Insert", "DropTableFull", "DeleteTimeout"]).unwrap();
        found.iter().map(Mutant::describe).collect()
    }

    #[test]
    fn conditions_are_negated_each_for_itself() {
        assert_eq!(
            changes("fn f() { if a && let Some(x) = b && c == 1 { d() } }"),
            ["f: a -> !(a)", "f: c == 1 -> !(c == 1)"]
        );
        assert_eq!(changes("fn f() { if a || b { d() } }"), ["f: a -> !(a)", "f: || -> &&", "f: b -> !(b)"]);
    }

    #[test]
    fn an_event_becomes_its_neighbour() {
        assert_eq!(changes("fn f() { count(Event::Insert) }"), ["f: Insert -> DropTableFull"]);
        assert_eq!(changes("fn f() { count(Event::DeleteTimeout) }"), ["f: DeleteTimeout -> Insert"]);
        assert_eq!(changes("fn f() { count(Health::Insert) }"), <[&str; 0]>::default());
        assert_eq!(changes("fn f() { matches!(a, Some(Event::Insert)) }"), ["f: Insert -> DropTableFull"]);
    }

    #[test]
    fn a_program_is_emptied_and_knows_its_kind() {
        let found = mutants("#[kprobe]\nfn f(ctx: ProbeContext) -> u32 { count(ctx) }", &[]).unwrap();
        assert_eq!(found[0].part, Part::Kprobe);
        assert_eq!(found[0].to, "{ let _ = ctx; 0 }");
        assert_eq!(found[0].line, 2);
    }

    #[test]
    fn an_arm_is_left_out_where_another_one_takes_everything() {
        assert_eq!(
            changes("fn f() { match x { 1 => a(), _ => b() } }"),
            ["f: 1 => a(), -> "],
            "the last arm stays"
        );
        assert_eq!(changes("fn f() { match x { A => a(), B => b() } }"), <[&str; 0]>::default());
    }

    #[test]
    fn tests_and_userspace_are_left_alone() {
        assert_eq!(changes("#[cfg(test)]\nmod tests { fn f() { if a {} } }"), <[&str; 0]>::default());
        assert_eq!(
            changes("#[cfg(feature = \"user\")]\nimpl A { fn f() { if a {} } }"),
            <[&str; 0]>::default()
        );
    }

    #[test]
    fn a_change_touches_nothing_else() {
        let source = "fn f() { if a { b() } }";
        let found = mutants(source, &[]).unwrap();
        assert_eq!(found[0].applied(source), "fn f() { if !(a) { b() } }");
    }
}
