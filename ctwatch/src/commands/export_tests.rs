use super::*;
use crate::cli::Cli;
use crate::cli::Command;
use crate::commands::scripted::Scripted;
use clap::Parser as _;

fn options(args: &[&str]) -> ExportOptions {
    match Cli::try_parse_from(["ctwatch", "export"].iter().chain(args)).unwrap().into_command() {
        Command::Export(export) => (*export).into(),
        other => panic!("not export: {other:?}"),
    }
}

/// Exports a source that counts one insert a reading into a file for this long; what the file held then.
async fn exported(looks: Vec<anyhow::Result<Status>>, seconds: u64) -> (anyhow::Result<()>, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("m.prom");
    let (stop, stopped) = watch::channel(false);
    let mut source = Scripted::new(looks);
    let out = Out::Textfile(Textfile::new(&path).unwrap());
    let options = options(&["--textfile", path.to_str().unwrap()]);
    let ended = {
        let mut run = std::pin::pin!(export(&mut source, &options, out, stopped));
        tokio::select! {
            ended = &mut run => ended,
            () = tokio::time::sleep(Duration::from_millis(seconds * 1000 + 500)) => {
                stop.send_replace(true);
                run.await
            }
        }
    };
    (ended, std::fs::read_to_string(path).unwrap_or_default())
}

#[tokio::test(start_paused = true)]
async fn totals_go_on_from_the_start_to_the_last_moment() {
    let (ended, text) = exported(vec![], 3).await;
    ended.unwrap();
    // The first reading only starts the clock, one is published at once, three at intervals, one at the end.
    assert!(text.contains("ctwatch_inserts_total{netns=\"7\",family=\"ipv4\",proto=\"udp\"} 6"), "{text}");
    assert!(text.contains("ctwatch_watching 1"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn while_there_is_nothing_to_watch_the_counts_stay_and_it_says_so() {
    let waiting = || Ok(Status::Waiting("nothing is loaded".into()));
    let (ended, text) = exported((0..20).map(|_| waiting()).collect(), 2).await;
    ended.unwrap();
    assert!(text.contains("ctwatch_watching 0") && text.contains("ctwatch_inserts_total{"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_ends_it() {
    let (ended, _) = exported(vec![Ok(Status::Watching), Err(anyhow::anyhow!("gone"))], 5).await;
    assert_eq!(ended.unwrap_err().to_string(), "gone");
}

#[test]
fn the_watchdog_hears_of_us_twice_in_its_time() {
    assert_eq!(alive_after(Some(Duration::from_secs(30))), Duration::from_secs(15));
    assert!(alive_after(Some(Duration::ZERO)) > Duration::ZERO);
    assert!(alive_after(None) > Duration::from_hours(24));
}
