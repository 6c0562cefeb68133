//! HTTP for scrapes. A client may be slow, broken or hostile. So ctwatch bounds everything about connections: their
//! number, the size of a request, and the time from its first byte to the answer's last.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue, VARY};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};

use super::listen::Listener;
use super::page::Page;
use crate::view::openmetrics::Format;

/// Connections at once over all places; later ones wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 256;
/// As Prometheus waits for a scrape where nothing else is configured.
const LONGEST_CONNECTION: Duration = Duration::from_secs(10);
/// The smallest that hyper takes; a scrape has some 300 bytes.
const LARGEST_REQUEST: usize = 8192;
const MOST_HEADERS: usize = 64;
/// After `accept` failed, by lack of descriptors say: trying again at once would fail again.
const RECOVERY: Duration = Duration::from_millis(100);

const ABOUT: &str = "ctwatch: what connection tracking does to this machine\n\n/metrics\n/healthz\n";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Serves at these places as long as the event loop runs.
pub(super) fn serve(listeners: Vec<Listener>, published: &watch::Receiver<Page>) {
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    for listener in listeners {
        let (places, published) = (Arc::clone(&places), published.clone());
        tokio::spawn(async move {
            loop {
                // An error means that the semaphore was closed, which nobody does.
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let published = published.clone();
                match listener.accept().await {
                    Ok(stream) => {
                        tokio::spawn(async move {
                            // Ends by the answer, by the time, or by an error that is the client's own.
                            let _ = timeout(LONGEST_CONNECTION, connection(stream, published)).await;
                            drop(place);
                        });
                    }
                    Err(_) => sleep(RECOVERY).await,
                }
            }
        });
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    published: watch::Receiver<Page>,
) -> hyper::Result<()> {
    let answer = service_fn(|request: Request<Incoming>| {
        let answer = answer(request.method(), request.uri().path(), request.headers(), &published);
        async move { Ok::<_, Infallible>(answer) }
    });
    http1::Builder::new()
        // One request a connection: what stays open between scrapes is held against everybody else.
        .keep_alive(false)
        .max_buf_size(LARGEST_REQUEST)
        .max_headers(MOST_HEADERS)
        .serve_connection(TokioIo::new(stream), answer)
        .await
}

fn answer(
    method: &Method,
    path: &str,
    headers: &hyper::HeaderMap,
    published: &watch::Receiver<Page>,
) -> Response<Full<Bytes>> {
    // A body is not read: the connection ends with the answer.
    if method != Method::GET && method != Method::HEAD {
        let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match path {
        "/metrics" => {
            // Several headers of a name are one list (RFC 9110, 5.3).
            let accept: Vec<&str> =
                headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
            let format = Format::negotiate(&accept.join(","));
            let mut page = Response::new(published.borrow().text(format));
            page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(format.content_type()));
            page.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
            page
        }
        "/healthz" if published.borrow().is_late() => {
            text(StatusCode::SERVICE_UNAVAILABLE, "readings do not come\n")
        }
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/" => text(StatusCode::OK, ABOUT),
        _ => text(StatusCode::NOT_FOUND, "not here; try /metrics\n"),
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(PLAIN));
    response
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
