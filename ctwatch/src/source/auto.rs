//! The best source of this kernel, found out when there is something to attach to.

use super::{Source, Status};
use crate::model::{Sample, SourceInfo};

/// Opens the next best source, told why the one before failed.
type Next = Box<dyn FnOnce(&anyhow::Error) -> anyhow::Result<Box<dyn Source>>>;

/// A source that gives way to the next best one, once.
///
/// Where connection tracking is not loaded, that probes are refused shows only when it appears.
pub(super) struct Auto {
    current: Box<dyn Source>,
    next: Option<Next>,
}

impl std::fmt::Debug for Auto {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auto").field("info", self.current.info()).finish_non_exhaustive()
    }
}

impl Auto {
    /// `next` takes over where `best` fails before it has ever watched.
    pub(super) fn new(
        best: Box<dyn Source>,
        next: impl FnOnce(&anyhow::Error) -> anyhow::Result<Box<dyn Source>> + 'static,
    ) -> Self {
        Self { current: best, next: Some(Box::new(next)) }
    }
}

impl Source for Auto {
    fn info(&self) -> &SourceInfo {
        self.current.info()
    }

    fn look(&mut self) -> anyhow::Result<Status> {
        match self.current.look() {
            Ok(Status::Watching) => {
                // What it has counted by now nobody else could continue.
                self.next = None;
                Ok(Status::Watching)
            }
            Err(refused) => {
                let Some(next) = self.next.take() else { return Err(refused) };
                self.current = next(&refused)?;
                self.current.look()
            }
            waiting => waiting,
        }
    }

    fn sample(&mut self) -> anyhow::Result<Sample> {
        self.current.sample()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::model::SourceKind;

    /// Answers the looks that it is given, then refuses.
    struct Scripted(SourceInfo, Vec<Status>);

    impl Source for Scripted {
        fn info(&self) -> &SourceInfo {
            &self.0
        }

        fn look(&mut self) -> anyhow::Result<Status> {
            self.1.pop().ok_or_else(|| anyhow::anyhow!("refused"))
        }

        fn sample(&mut self) -> anyhow::Result<Sample> {
            Ok(Sample::default())
        }
    }

    fn scripted(kind: SourceKind, looks: Vec<Status>) -> Box<dyn Source> {
        Box::new(Scripted(SourceInfo { kind, why: None, unknown: BTreeMap::new() }, looks))
    }

    fn auto(looks: Vec<Status>) -> Auto {
        Auto::new(scripted(SourceKind::Fexit, looks), |refused| {
            assert_eq!(refused.to_string(), "refused");
            Ok(scripted(SourceKind::Netlink, vec![Status::Watching]))
        })
    }

    #[test]
    fn what_fails_at_its_first_attachment_gives_way() {
        let mut auto = auto(vec![Status::Waiting("no module".into())]);
        assert!(matches!(auto.look().unwrap(), Status::Waiting(_)));
        assert_eq!(auto.info().kind, SourceKind::Fexit);
        assert_eq!(auto.look().unwrap(), Status::Watching);
        assert_eq!(auto.info().kind, SourceKind::Netlink);
        assert_eq!(auto.look().unwrap_err().to_string(), "refused");
    }

    #[test]
    fn what_has_watched_does_not() {
        let mut auto = auto(vec![Status::Watching]);
        assert_eq!(auto.look().unwrap(), Status::Watching);
        assert!(auto.look().is_err());
        assert_eq!(auto.info().kind, SourceKind::Fexit);
    }
}
