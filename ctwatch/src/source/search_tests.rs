use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

/// A /proc with these processes, each in a network namespace and in a user namespace.
fn fake_of_users(processes: &[(u32, u32, u32)]) -> (tempfile::TempDir, Roots) {
    let dir = tempfile::tempdir().unwrap();
    let roots = Roots { proc: dir.path().join("proc"), named: dir.path().join("netns") };
    let link = |process: &str, net: u32, user: u32| {
        let ns = roots.proc.join(process).join("ns");
        fs::create_dir_all(&ns).unwrap();
        symlink(format!("net:[{net}]"), ns.join("net")).unwrap();
        symlink(format!("user:[{user}]"), ns.join("user")).unwrap();
    };
    for (pid, net, user) in processes {
        link(&pid.to_string(), *net, *user);
    }
    link("thread-self", 300, 1);
    fs::create_dir_all(&roots.named).unwrap();
    (dir, roots)
}

pub(in super::super) fn fake(processes: &[(u32, u32)]) -> (tempfile::TempDir, Roots) {
    let processes: Vec<(u32, u32, u32)> = processes.iter().map(|(pid, net)| (*pid, *net, 1)).collect();
    fake_of_users(&processes)
}

fn all(roots: &Roots, own: u32) -> Found {
    find(roots, own, |_| true)
}

#[test]
fn namespaces_are_found_through_processes() {
    let (_dir, roots) = fake(&[(1, 100), (2, 100), (30, 200), (31, 200)]);
    let Found { places, left_out } = all(&roots, 300);
    assert_eq!(places.keys().copied().collect::<Vec<_>>(), [100, 200, 300]);
    assert_eq!(places[&100].name.as_deref(), Some("init"));
    assert_eq!(places[&100].ways, [Way::Process(1), Way::Process(2)]);
    assert_eq!(places[&200].name, None);
    assert_eq!(places[&200].processes().collect::<Vec<_>>(), [30, 31]);
    assert_eq!(places[&300], Place::default());
    assert_eq!(left_out, 0);
}

#[test]
fn only_what_is_wanted_is_found_and_counted() {
    let (_dir, roots) = fake(&[(1, 100), (30, 200)]);
    let found = find(&roots, 300, |netns| netns == 200);
    assert_eq!(found.places.keys().copied().collect::<Vec<_>>(), [200]);
    assert_eq!(found.left_out, 0);
}

#[test]
fn those_beyond_the_limit_are_counted() {
    let many: Vec<(u32, u32)> = (1..=1500).map(|pid| (pid, 1000 + pid)).collect();
    let (_dir, roots) = fake(&many);
    let Found { places, left_out } = all(&roots, 7);
    assert_eq!((places.len(), left_out), (MOST, 1501 - MOST));
    assert!(places.contains_key(&7), "our own is always there");
    assert!(places.contains_key(&1001), "the first too");

    let crowd: Vec<(u32, u32)> = (1..=40).map(|pid| (pid, 9)).collect();
    let (_dir, roots) = fake(&crowd);
    assert_eq!(all(&roots, 9).places[&9].ways.len(), MOST_WAYS);
}

#[test]
fn other_users_do_not_push_ours_out() {
    let mut many: Vec<(u32, u32, u32)> = (2..=2000).map(|pid| (pid, 1000 + pid, 2)).collect();
    many.push((1, 100, 1));
    many.push((5000, 500, 1));
    let (_dir, roots) = fake_of_users(&many);
    let Found { places, left_out } = all(&roots, 300);
    assert_eq!((places.len(), left_out), (MOST, 2002 - MOST));
    assert!([100, 300, 500].iter().all(|ours| places.contains_key(ours)));
}

#[test]
fn a_file_that_is_no_namespace_is_no_name() {
    let (_dir, roots) = fake(&[(1, 100)]);
    fs::write(roots.named.join("left-behind"), "").unwrap();
    assert_eq!(all(&roots, 100).places.len(), 1);
}

#[test]
fn our_own_namespace_is_init_where_the_bucket_count_can_be_written() {
    let (_dir, roots) = fake(&[(20, 200)]);
    let sysctls = roots.proc.join("sys/net/netfilter");
    fs::create_dir_all(&sysctls).unwrap();
    let buckets = sysctls.join("nf_conntrack_buckets");
    fs::write(&buckets, "65536").unwrap();
    fs::set_permissions(&buckets, fs::Permissions::from_mode(0o444)).unwrap();
    assert_eq!(roots.init(100), None);
    fs::set_permissions(&buckets, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(all(&roots, 100).places[&100].name.as_deref(), Some("init"));
}

#[test]
fn mounts_of_namespaces_are_recognised() {
    let line = "512 24 0:4 net:[4026532290] /run/netns/blue\\040sky rw shared:7 - nsfs nsfs rw";
    assert_eq!(mounted(line), Some((4_026_532_290, "/run/netns/blue sky".into())));
    assert_eq!(mounted("22 28 0:21 / /proc rw,nosuid shared:13 - proc proc rw"), None);
    assert_eq!(mounted("22 28 0:4 mnt:[4026532290] /x rw - nsfs nsfs rw"), None);
    assert_eq!(mounted("22 28 0:4 net:[4026532290] /x\\9 rw - nsfs nsfs rw"), None);
    assert_eq!(mounted(""), None);

    let (_dir, roots) = fake(&[(1, 100)]);
    fs::create_dir_all(roots.proc.join("self")).unwrap();
    let line = line.replace("/run/netns/blue\\040sky", "/run/docker/netns/x");
    fs::write(roots.proc.join("self/mountinfo"), line).unwrap();
    assert_eq!(all(&roots, 100).places[&4_026_532_290].ways, [Way::Mount("/run/docker/netns/x".into())]);
}

#[test]
fn our_own_is_found() {
    let roots = Roots::default();
    let own = roots.own().unwrap();
    assert!(all(&roots, own).places[&own].processes().next().is_some());
}
