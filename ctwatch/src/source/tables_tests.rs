use std::os::unix::fs::symlink;

use super::*;

/// A /proc with these processes, each in a namespace.
fn fake(processes: &[(u32, u32)]) -> (tempfile::TempDir, Roots) {
    let dir = tempfile::tempdir().unwrap();
    let roots = Roots { proc: dir.path().join("proc"), named: dir.path().join("netns") };
    for (pid, netns) in processes {
        let ns = roots.proc.join(format!("{pid}/ns"));
        fs::create_dir_all(&ns).unwrap();
        symlink(format!("net:[{netns}]"), ns.join("net")).unwrap();
    }
    let own = roots.proc.join("thread-self/ns");
    fs::create_dir_all(&own).unwrap();
    symlink("net:[300]", own.join("net")).unwrap();
    fs::create_dir_all(&roots.named).unwrap();
    (dir, roots)
}

#[test]
fn namespaces_are_found_through_processes() {
    let (_dir, roots) = fake(&[(1, 100), (2, 100), (30, 200), (31, 200)]);
    let places = find(&roots, 300);
    assert_eq!(places.keys().copied().collect::<Vec<_>>(), [100, 200, 300]);
    assert_eq!(places[&100].name.as_deref(), Some("init"));
    assert_eq!(places[&200].name, None);
    assert_eq!(places[&200].ways.len(), 2);
    assert_eq!(places[&300], Place::default());
}

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
    let places = find(&roots, 300);
    let called = |inode| places[&inode].called();
    assert_eq!(called(100).as_deref(), Some("init"));
    assert_eq!(called(200).as_deref(), Some("nginx (bbbbbbbbbbbb)"));
    assert_eq!(called(300).as_deref(), Some("pause"), "nobody else is there");
}

#[test]
fn the_search_is_bounded() {
    let many: Vec<(u32, u32)> = (1..=400).map(|pid| (pid, 1000 + pid)).collect();
    let (_dir, roots) = fake(&many);
    let places = find(&roots, 7);
    assert_eq!(places.len(), MOST);
    assert!(places.contains_key(&7), "our own is always there");

    let crowd: Vec<(u32, u32)> = (1..=40).map(|pid| (pid, 9)).collect();
    let (_dir, roots) = fake(&crowd);
    assert_eq!(find(&roots, 9)[&9].ways.len(), MOST_WAYS);
}

#[test]
fn a_file_that_is_no_namespace_is_no_name() {
    let (_dir, roots) = fake(&[(1, 100)]);
    fs::write(roots.named.join("left-behind"), "").unwrap();
    assert_eq!(find(&roots, 100).len(), 1);
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
fn our_own_namespace_is_init_where_the_bucket_count_can_be_written() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_dir, roots) = fake(&[(20, 200)]);
    let sysctls = roots.proc.join("sys/net/netfilter");
    fs::create_dir_all(&sysctls).unwrap();
    let buckets = sysctls.join("nf_conntrack_buckets");
    fs::write(&buckets, "65536").unwrap();
    fs::set_permissions(&buckets, fs::Permissions::from_mode(0o444)).unwrap();
    assert_eq!(roots.init(100), None);
    fs::set_permissions(&buckets, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(find(&roots, 100)[&100].name.as_deref(), Some("init"));
}

#[test]
fn entries_are_read_by_column_title() {
    let new = "entries  clashres found\n0000abcd  00000000 00000000\n0000abcd  00000001 00000000\n";
    assert_eq!(parse_entries(new), Some(0xabcd));
    assert_eq!(parse_entries("searched entries\n00000001 00000010\n"), Some(16));
    assert_eq!(parse_entries("entries\n"), None);
    assert_eq!(parse_entries("found\n00000001\n"), None);
    assert_eq!(parse_entries(""), None);
}

#[test]
fn an_ended_process_is_no_way_in() {
    let (_dir, roots) = fake(&[(1, 100)]);
    let place = Place {
        ways: vec![Way::Process(4_000_000), Way::Named(roots.named.join("gone"))],
        ..Place::default()
    };
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
