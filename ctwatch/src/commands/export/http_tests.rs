use std::collections::BTreeMap;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::net::TcpStream;

use super::super::listen;
use super::*;
use crate::cli::Listen;
use crate::model::series::Exposition;
use crate::view::openmetrics::Build;

fn published() -> watch::Receiver<Page> {
    let exposition = Exposition {
        flows: BTreeMap::new(),
        tables: Vec::new(),
        top: Vec::new(),
        lost: 4711,
        cpu_ns: 0,
        kind: "kprobe",
        why: None,
        watching: true,
        left_out: 0,
        top_left_out: 0,
        namespaces_left_out: 0,
    };
    let build = Build { version: "1", revision: "r" };
    watch::channel(Page::new(exposition, build, Duration::from_secs(1))).1
}

/// Everything that comes back for these bytes.
async fn ask(request: &[u8]) -> String {
    let (mut client, server) = duplex(1 << 20);
    let serving = connection(server, published());
    let asking = async {
        client.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    };
    tokio::join!(serving, asking).1
}

async fn get(path: &str, headers: &str) -> String {
    ask(format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").as_bytes()).await
}

#[tokio::test]
async fn a_scrape_gets_the_format_that_it_asks_for() {
    let text = get("/metrics", "").await;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("text/plain; version=0.0.4"), "{text}");
    assert!(text.contains("\nctwatch_events_lost_total 4711\n") && !text.contains("# EOF"), "{text}");
    let wanted = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5\r\n";
    let text = get("/metrics?x=1", wanted).await;
    assert!(
        text.contains("application/openmetrics-text; version=1.0.0") && text.ends_with("# EOF\n"),
        "{text}"
    );
    let split = "Accept: text/plain;q=0.5\r\nAccept: application/openmetrics-text\r\n";
    assert!(get("/metrics", split).await.ends_with("# EOF\n"));
}

#[tokio::test]
async fn other_requests_are_answered_and_never_served() {
    for (request, answer) in [
        ("GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 200 OK"),
        ("GET / HTTP/1.0\r\n\r\n", "HTTP/1.0 200 OK"),
        ("GET /../etc/passwd HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404 Not Found"),
        (
            "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
            "HTTP/1.1 405 Method Not Allowed",
        ),
        ("\0\x01\x02 garbage\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        ("GET /metrics HTTP/9.9\r\n\r\n", "HTTP/1.1 400 Bad Request"),
    ] {
        let told = ask(request.as_bytes()).await;
        assert!(told.starts_with(answer), "{request:?}: {told}");
        assert!(!told.contains("4711"), "{request:?}: {told}");
    }
    let head = ask(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 OK") && !head.contains("4711"), "{head}");
}

#[tokio::test]
async fn large_requests_are_cut_off() {
    let long = format!("X: {}\r\n", "a".repeat(2 * LARGEST_REQUEST));
    assert!(get("/metrics", &long).await.starts_with("HTTP/1.1 431"));
    let many = "X: a\r\n".repeat(MOST_HEADERS + 1);
    assert!(get("/metrics", &many).await.starts_with("HTTP/1.1 431"));
    let path = format!("/{}", "a".repeat(2 * LARGEST_REQUEST));
    let told = get(&path, "").await;
    assert!(told.starts_with("HTTP/1.1 431") || told.starts_with("HTTP/1.1 414"), "{told}");
}

#[tokio::test]
async fn one_request_a_connection() {
    let twice = "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2);
    assert_eq!(ask(twice.as_bytes()).await.matches("200 OK").count(), 1);
}

/// Twice as many clients as places, each silent: all of them are gone in time, and a scrape among them is served.
#[tokio::test(start_paused = true)]
async fn silent_clients_lose_their_place() {
    let listeners = listen::open(&[Listen::Tcp("127.0.0.1:0".parse().unwrap())]).unwrap();
    let place = listeners[0].place();
    let address = place.strip_prefix("http://").and_then(|place| place.strip_suffix("/metrics")).unwrap();
    serve(listeners, &published());
    let mut silent = Vec::new();
    for _ in 0..2 * MOST_CONNECTIONS {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let mut scrape = TcpStream::connect(address).await.unwrap();
    scrape.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    scrape.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("ctwatch_events_lost_total 4711"), "{answer}");
}
