use std::path::PathBuf;

use super::super::search::tests::fake;
use super::*;

#[test]
fn a_namespace_without_a_name_is_called_by_who_is_in_it() {
    let (_dir, roots) = fake(&[(1, 100), (30, 200), (31, 200), (40, 300)]);
    for (pid, comm, cgroup) in [
        (1, "init", "0::/init.scope"),
        (30, "pause", "0::/kubepods/pod1/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"),
        (31, "nginx", "0::/kubepods/pod1/bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"),
        (40, "pause", "0::/"),
    ] {
        let process = roots.proc.join(pid.to_string());
        fs::write(process.join("comm"), format!("{comm}\n")).unwrap();
        fs::write(process.join("cgroup"), format!("{cgroup}\n")).unwrap();
    }
    let places = search::find(&roots, 300, |_| true).places;
    let called = |inode: u32| {
        let place = &places[&inode];
        Known { place: place.clone(), occupant: occupant(&roots, place) }.called()
    };
    assert_eq!(called(100).as_deref(), Some("init"));
    assert_eq!(called(200).as_deref(), Some("nginx (bbbbbbbbbbbb)"));
    assert_eq!(called(300).as_deref(), Some("pause"), "nobody else is there");
}

#[test]
fn an_unknown_name_is_an_error_that_lists_those_there_are() {
    let (_dir, roots) = fake(&[(1, 100)]);
    let error = resolve_in(&roots, "left-behind").unwrap_err().to_string();
    assert!(error.contains("none has a name here"), "{error}");
}

#[test]
fn netns_words_are_resolved() {
    let (_dir, roots) = fake(&[(1, 100)]);
    assert_eq!(resolve_in(&roots, "all").unwrap(), None);
    assert_eq!(resolve_in(&roots, "init").unwrap(), Some(100));
    assert_eq!(resolve_in(&roots, "4026531840").unwrap(), Some(4_026_531_840));
    assert!(resolve_in(&roots, "99999999999").is_err());
    assert!(resolve_in(&roots, "..").is_err());
    assert_eq!(resolve("self").unwrap(), namespaces::inode_of_link(Path::new("/proc/self/ns/net")));
}

#[test]
fn an_ended_process_is_no_way_in() {
    let (_dir, roots) = fake(&[(1, 100)]);
    let place = Place { ways: vec![Way::Process(4_000_000), Way::Named("gone".into())], ..Place::default() };
    assert_eq!(enter(&roots, 100, &place), None);
}

/// Reads a namespace of its own, and proves that reading does not keep it alive.
#[test]
#[ignore = "makes a network namespace: needs root and nf_conntrack"]
fn root_reads_other_namespaces_and_lets_them_go() {
    use std::process::{Command, Stdio};
    let mut holder = Command::new("unshare").args(["-n", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
    let link = PathBuf::from(format!("/proc/{}/ns/net", holder.id()));
    let own = Roots::default().own().unwrap();
    let inode = loop {
        match namespaces::inode_of_link(&link) {
            Some(inode) if inode != own => break inode,
            _ => std::thread::yield_now(),
        }
    };
    let mut tables = Tables::new(None).unwrap();
    let found = tables.read([inode]);
    let table = found.iter().find(|table| table.netns == inode).expect("found");
    assert_eq!(table.count, Some(0));
    assert!(table.name.starts_with("cat"), "{}", table.name);
    assert_eq!(table.max, found.iter().find(|table| table.netns == own).unwrap().max);
    assert_eq!(Roots::default().own().unwrap(), own, "this thread has not moved");

    drop(holder.stdin.take());
    holder.wait().unwrap();
    let held =
        fs::read_dir("/proc/self/fd").unwrap().flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    assert!(held.into_iter().all(|target| target.to_string_lossy() != format!("net:[{inode}]")));
    assert!(tables.read([]).iter().all(|table| table.netns != inode));
}
