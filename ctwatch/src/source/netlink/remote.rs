//! The netlink source in the keeper, as ctwatch sees it.

use super::super::keeper::Keeper;
use super::super::{Source, Status, own_time};
use crate::model::{Sample, SourceInfo};

/// Asks the keeper for everything.
#[derive(Debug)]
pub(crate) struct Remote {
    keeper: &'static Keeper,
    info: SourceInfo,
}

impl Remote {
    /// Opens the source there. `better` says why no better source runs.
    pub(crate) fn open(keeper: &'static Keeper, better: String) -> anyhow::Result<Self> {
        let info = keeper.open(better)?;
        Ok(Self { keeper, info })
    }
}

impl Source for Remote {
    fn info(&self) -> &SourceInfo {
        &self.info
    }

    fn look(&mut self) -> anyhow::Result<Status> {
        let (status, info) = self.keeper.look()?;
        self.info = info;
        Ok(status)
    }

    fn sample(&mut self) -> anyhow::Result<Sample> {
        let sample = self.keeper.sample()?;
        Ok(Sample { own_ns: own_time(), ..sample })
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        self.keeper.close();
    }
}
