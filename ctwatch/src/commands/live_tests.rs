use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use super::super::scripted::Scripted;
use super::*;
use crate::model::{By, Filter};
use crate::source::SourceChoice;
use crate::view::Machine;

/// A writer that fails, or never gets ready.
struct Bad(Option<io::ErrorKind>);

impl AsyncWrite for Bad {
    fn poll_write(self: Pin<&mut Self>, _: &mut TaskContext<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        match self.0 {
            Some(kind) => Poll::Ready(Err(kind.into())),
            None => Poll::Pending,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn options(count: Option<u64>) -> Options {
    Options {
        interval: Duration::from_secs(1),
        count,
        format: Format::Json,
        color: false,
        verbose: false,
        filter: Filter::default(),
        by: vec![By::Dport],
        source: SourceChoice::Auto,
    }
}

fn json() -> Json {
    Json::new(Machine { host: "h".into(), kernel: "k".into() })
}

/// Runs until `stop_after` and gives each object's elapsed seconds, inserts and total of inserts.
async fn run_json(mut source: Scripted, count: Option<u64>, stop_after: Duration) -> Vec<(f64, u64, u64)> {
    let (stop, stopped) = watch::channel(false);
    let mut out = Vec::new();
    let mut view = json();
    let options = options(count);
    let watching = watch(&mut source, &options, &mut view, &mut out, || false, stopped);
    let stopping = async {
        tokio::time::sleep(stop_after).await;
        let _ = stop.send(true);
    };
    let (done, ()) = tokio::join!(watching, stopping);
    done.unwrap();
    String::from_utf8(out)
        .unwrap()
        .lines()
        .map(|line| {
            let object: serde_json::Value = serde_json::from_str(line).unwrap();
            let flow = &object["flows"][0];
            (
                object["elapsed_s"].as_f64().unwrap(),
                flow["insert"].as_u64().unwrap(),
                flow["total"]["insert"].as_u64().unwrap(),
            )
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn count_ends_after_so_many_reports() {
    let reports = run_json(Scripted::new(vec![]), Some(3), Duration::from_mins(1)).await;
    // The source counted one at the sample that only sets the clock.
    assert_eq!(reports, [(1.0, 2, 2), (1.0, 1, 3), (1.0, 1, 4)]);
}

#[tokio::test(start_paused = true)]
async fn stopping_prints_the_partial_interval() {
    let reports = run_json(Scripted::new(vec![]), None, Duration::from_millis(2250)).await;
    assert_eq!(reports, [(1.0, 2, 2), (1.0, 1, 3), (0.25, 1, 4)]);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_reported_while_waiting_and_rates_start_anew() {
    let waiting = || Ok(Status::Waiting("not loaded".into()));
    let looks = (0..50).map(|_| waiting()).collect();
    // 50 looks, the first at once and then one each 200 ms: watching begins at 10 s.
    let reports = run_json(Scripted::new(looks), Some(1), Duration::from_mins(1)).await;
    assert_eq!(reports, [(1.0, 3, 3)]);
}

#[tokio::test(start_paused = true)]
async fn stopping_while_waiting_ends_with_totals() {
    let looks = (0..50).map(|_| Ok(Status::Waiting("not loaded".into()))).collect();
    let reports = run_json(Scripted::new(looks), None, Duration::from_secs(3)).await;
    assert_eq!(reports, [(3.0, 2, 2)]);
}

#[tokio::test(start_paused = true)]
async fn what_was_counted_before_the_module_went_is_reported() {
    let looks = vec![Ok(Status::Watching), Ok(Status::Waiting("unloaded".into()))];
    let mut wide = options(Some(2));
    wide.interval = Duration::from_mins(1);
    let mut source = Scripted::new(looks);
    let (_stop, stopped) = watch::channel(false);
    let mut out = Vec::new();
    watch(&mut source, &wide, &mut json(), &mut out, || false, stopped).await.unwrap();
    let elapsed: Vec<f64> = String::from_utf8(out)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["elapsed_s"].as_f64().unwrap())
        .collect();
    assert_eq!(elapsed, [1.0, 60.0]);
}

async fn run_bad(out: Bad, stop_now: bool, reader_is_gone: bool) -> anyhow::Result<()> {
    let (stop, stopped) = watch::channel(false);
    stop.send(stop_now).unwrap();
    let mut source = Scripted::new(vec![]);
    watch(&mut source, &options(None), &mut json(), out, || reader_is_gone, stopped).await
}

#[tokio::test(start_paused = true)]
async fn a_closed_pipe_is_no_error() {
    run_bad(Bad(Some(io::ErrorKind::BrokenPipe)), false, false).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_left_is_noticed_without_writing() {
    run_bad(Bad(None), false, true).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_is_an_error_with_its_cause() {
    let error = run_bad(Bad(Some(io::ErrorKind::StorageFull)), false, false).await.unwrap_err();
    assert_eq!(format!("{error:#}"), "cannot write to stdout: no storage space");
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_does_not_read_cannot_keep_us() {
    run_bad(Bad(None), true, false).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_ends_the_run() {
    let mut source = Scripted::new(vec![Ok(Status::Watching), Err(anyhow::anyhow!("map gone"))]);
    let (_stop, stopped) = watch::channel(false);
    let mut out = Vec::new();
    let error =
        watch(&mut source, &options(None), &mut json(), &mut out, || false, stopped).await.unwrap_err();
    assert_eq!(error.to_string(), "map gone");
}
