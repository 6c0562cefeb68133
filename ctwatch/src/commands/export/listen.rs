//! Places where clients connect: addresses, Unix sockets, and sockets that systemd opened.

use std::io;
use std::net::TcpListener as StdTcp;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener as StdUnix, UnixStream};
use std::path::{Path, PathBuf};
use std::pin::Pin;

use anyhow::Context as _;
use nix::sys::socket::{AddressFamily, SockaddrLike as _, SockaddrStorage, getsockname};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

use crate::cli::Listen;

/// Something to accept connections from.
#[derive(Debug)]
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _made: Option<Made> },
}

/// A socket's file that was made here, and goes away with it.
#[derive(Debug)]
pub(super) struct Made(PathBuf);

impl Drop for Made {
    fn drop(&mut self) {
        // Another may have removed it already.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A connection of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Stream for T {}

impl Listener {
    pub(super) async fn accept(&self) -> io::Result<Pin<Box<dyn Stream>>> {
        Ok(match self {
            Self::Tcp(listener) => Box::pin(listener.accept().await?.0),
            Self::Unix { listener, .. } => Box::pin(listener.accept().await?.0),
        })
    }

    /// Where clients find it.
    pub(super) fn place(&self) -> String {
        match self {
            Self::Tcp(listener) => listener
                .local_addr()
                .map_or_else(|_| "an unknown address".into(), |address| format!("http://{address}/metrics")),
            Self::Unix { listener, .. } => {
                let address = listener.local_addr().ok();
                let path = address.as_ref().and_then(|address| address.as_pathname());
                path.map_or_else(|| "unix:?".into(), |path| format!("unix:{}", path.display()))
            }
        }
    }
}

/// The sockets that systemd handed over, or else the places that were asked for.
pub(super) fn open(places: &[Listen]) -> anyhow::Result<Vec<Listener>> {
    let handed: Vec<RawFd> = sd_notify::listen_fds().context("cannot take systemd's sockets")?.collect();
    if !handed.is_empty() {
        return handed.into_iter().map(take).collect();
    }
    places.iter().map(bind).collect()
}

fn bind(place: &Listen) -> anyhow::Result<Listener> {
    match place {
        Listen::Tcp(address) => {
            let listener = StdTcp::bind(address).with_context(|| format!("cannot listen at {address}"))?;
            tcp(listener)
        }
        Listen::Unix(path) => {
            clear(path);
            let listener =
                StdUnix::bind(path).with_context(|| format!("cannot listen at {}", path.display()))?;
            unix(listener, Some(Made(path.clone())))
        }
    }
}

/// Removes the file of a socket that a killed run left: a connection to it is refused. Any other file stays, and the bind
/// fails.
fn clear(path: &Path) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    let refused =
        || UnixStream::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if is_socket && refused() {
        let _ = std::fs::remove_file(path);
    }
}

fn take(fd: RawFd) -> anyhow::Result<Listener> {
    let address: SockaddrStorage = getsockname(fd).context("a descriptor from systemd is no socket")?;
    // SAFETY: systemd opened it for this process alone (LISTEN_PID was compared), and nothing else here owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    match address.family() {
        Some(AddressFamily::Inet | AddressFamily::Inet6) => tcp(owned.into()),
        Some(AddressFamily::Unix) => unix(owned.into(), None),
        other => anyhow::bail!("a socket from systemd is of family {other:?}, which is not served"),
    }
}

fn tcp(listener: StdTcp) -> anyhow::Result<Listener> {
    listener.set_nonblocking(true)?;
    Ok(Listener::Tcp(TcpListener::from_std(listener)?))
}

fn unix(listener: StdUnix, made: Option<Made>) -> anyhow::Result<Listener> {
    listener.set_nonblocking(true)?;
    Ok(Listener::Unix { listener: UnixListener::from_std(listener)?, _made: made })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_a_killed_run_left_is_taken_over_and_goes_away() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("metrics.sock");
        drop(StdUnix::bind(&path).unwrap());
        let listeners = open(&[Listen::Unix(path.clone())]).unwrap();
        assert_eq!(listeners[0].place(), format!("unix:{}", path.display()));
        assert!(open(&[Listen::Unix(path.clone())]).is_err(), "one that answers was taken over");
        drop(listeners);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_stays() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = format!("{:#}", open(&[Listen::Unix(file.path().to_owned())]).unwrap_err());
        assert!(error.contains("cannot listen at"), "{error}");
        assert!(file.path().exists());
    }
}
