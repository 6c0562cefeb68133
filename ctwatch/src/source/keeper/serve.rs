//! The keeper's own loop. It waits for requests, and never for ctwatch to take an answer.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::netlink::Netlink;
use super::super::netlink::singles::Asked;
use super::super::tables::Here;
use super::super::{Source as _, Status, own_time};
use super::wire::{Answer, Frames, Request, failed, frame};
use crate::model::Filter;

struct Keeping {
    filter: Filter,
    /// Single events that the netlink source shall hand over.
    asked: Option<Arc<Asked>>,
    /// By the namespace that alone is wanted.
    tables: BTreeMap<Option<u32>, Here>,
    netlink: Option<Netlink>,
}

/// Serves until ctwatch ends.
pub(super) fn serve(mut stream: UnixStream, filter: &Filter, asked: Option<&Asked>) -> io::Result<()> {
    stream.set_nonblocking(true)?;
    let asked = asked.cloned().map(Arc::new);
    let mut keeping = Keeping { filter: *filter, asked, tables: BTreeMap::new(), netlink: None };
    let (mut frames, mut answers) = (Frames::default(), Vec::new());
    let mut bytes = [0; 1 << 14];
    loop {
        let mut wanted = PollFlags::POLLIN;
        wanted.set(PollFlags::POLLOUT, !answers.is_empty());
        let wait = keeping.netlink.as_ref().and_then(Netlink::due).map_or(PollTimeout::NONE, |due| {
            // A millisecond more: it counts whole ones.
            let wait = due.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut [PollFd::new(stream.as_fd(), wanted)], wait) {
            Ok(_) | Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(length) => frames.take(&bytes[..length]),
            Err(error) if is_nothing_yet(&error) => {}
            Err(error) => return Err(error),
        }
        while let Some(request) = frames.next()? {
            let answer = keeping.answer(request);
            answers.extend(frame(&(own_time().unwrap_or(0), answer))?);
        }
        while !answers.is_empty() {
            match stream.write(&answers) {
                Ok(length) => drop(answers.drain(..length)),
                Err(error) if is_nothing_yet(&error) => break,
                Err(error) => return Err(error),
            }
        }
        // Whether ctwatch asks or not: it may be stopped.
        if let Some(netlink) = &mut keeping.netlink {
            netlink.follow();
        }
    }
}

fn is_nothing_yet(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

impl Keeping {
    fn answer(&mut self, request: Request) -> Answer {
        self.try_answer(request).unwrap_or_else(|error| failed(&error))
    }

    fn try_answer(&mut self, request: Request) -> anyhow::Result<Answer> {
        Ok(match request {
            Request::Tables { only, met } => {
                if !self.tables.contains_key(&only) {
                    self.tables.clear();
                    self.tables.insert(only, Here::new(only)?);
                }
                let tables = self.tables.get_mut(&only).ok_or_else(|| anyhow::anyhow!("no tables"))?;
                Answer::Tables(tables.reading(met))
            }
            Request::Open { why } => {
                let netlink = Netlink::open_for(self.filter, self.asked.clone(), why)?;
                let info = netlink.info().clone();
                self.netlink = Some(netlink);
                Answer::Opened(info)
            }
            Request::Look => {
                let netlink = self.opened()?;
                let waiting = match netlink.look()? {
                    Status::Watching => None,
                    Status::Waiting(why) => Some(why),
                };
                Answer::Looked { waiting, info: netlink.info().clone() }
            }
            Request::Sample => Answer::Sampled(self.opened()?.sample()?.into()),
            Request::Told { last } => Answer::Told(self.opened()?.told(last)),
            Request::Close => {
                self.netlink = None;
                Answer::Closed
            }
        })
    }

    fn opened(&mut self) -> anyhow::Result<&mut Netlink> {
        self.netlink.as_mut().ok_or_else(|| anyhow::anyhow!("the netlink source is not open"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::exchange;
    use super::*;

    #[test]
    fn requests_are_answered_until_the_stream_ends() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let served = std::thread::spawn(move || serve(theirs, &Filter::default(), None));
        let tables = Request::Tables { only: None, met: vec![1, 2] };
        assert!(matches!(exchange(&mut ours, &tables).unwrap().1, Answer::Tables(_)));
        for request in [Request::Look, Request::Sample, Request::Told { last: true }] {
            let error = exchange(&mut ours, &request).unwrap().1.error();
            assert!(error.to_string().contains("not open"), "{error}");
        }
        assert!(matches!(exchange(&mut ours, &Request::Close).unwrap().1, Answer::Closed));
        drop(ours);
        served.join().unwrap().unwrap();
    }

    #[test]
    fn answers_that_nobody_takes_hold_nothing_up() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let served = std::thread::spawn(move || serve(theirs, &Filter::default(), None));
        let asked = 20_000;
        // More answers than the stream holds: the requests are taken all the same.
        for _ in 0..asked {
            ours.write_all(&frame(&Request::Close).unwrap()).unwrap();
        }
        let (mut frames, mut bytes, mut came) = (Frames::default(), [0; 4096], 0);
        while came < asked {
            let length = ours.read(&mut bytes).unwrap();
            frames.take(&bytes[..length]);
            while frames.next::<(u64, Answer)>().unwrap().is_some() {
                came += 1;
            }
        }
        drop(ours);
        served.join().unwrap().unwrap();
    }
}
