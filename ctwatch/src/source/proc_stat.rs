//! The text of `/proc/net/stat/nf_conntrack` (`ct_cpu_seq_show`, 5.10 to 7.3): a line of titles, then a line for each CPU,
//! in hexadecimal.

/// A namespace's counters, all CPUs together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistics<'a>(Vec<(&'a str, u64)>);

impl<'a> Statistics<'a> {
    /// `None` where the text is no such table or a line of it is cut.
    pub fn parse(text: &'a str) -> Option<Self> {
        let mut lines = text.lines();
        let titles = lines.next()?.split_whitespace();
        let mut sums: Vec<(&str, u64)> = titles.map(|title| (title, 0)).collect();
        let mut has_lines = false;
        for line in lines {
            let mut words = line.split_whitespace();
            for (title, sum) in &mut sums {
                let value = u64::from_str_radix(words.next()?, 16).ok()?;
                // The whole namespace's count is repeated on each line.
                *sum = if *title == "entries" { value } else { sum.saturating_add(value) };
            }
            has_lines = true;
        }
        (has_lines && !sums.is_empty()).then_some(Self(sums))
    }

    /// A counter by its title, where this kernel has it.
    pub fn get(&self, title: &str) -> Option<u64> {
        self.iter().find(|(name, _)| *name == title).map(|(_, sum)| sum)
    }

    /// All counters by their titles.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, u64)> {
        self.0.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_add_up_over_cpus_and_the_count_is_repeated() {
        let text = "entries  drop early_drop icmp_error  expect_new\n000000ff  00000001 00000010 0 0\n000000ff  00000002 00000001 0 0\n";
        let statistics = Statistics::parse(text).unwrap();
        let get = |title| statistics.get(title);
        assert_eq!((get("entries"), get("drop"), get("early_drop")), (Some(255), Some(3), Some(17)));
        assert_eq!(get("found"), None);
        assert_eq!(statistics.iter().count(), 5);
        let old = Statistics::parse("searched entries\n00000001 00000010\n").unwrap();
        assert_eq!(old.get("entries"), Some(16));
    }

    #[test]
    fn what_is_no_such_table_is_refused() {
        for text in ["", "\n", "entries\n", "entries drop\n1\n", "entries\nxyz\n", "entries drop\n1 1\n1\n"] {
            assert_eq!(Statistics::parse(text), None, "{text:?}");
        }
    }
}
