//! Every input that fuzzing started from or stumbled over, fed to its parser again.
#![expect(clippy::unwrap_used, reason = "an error in a helper fails the test, as it should")]

#[path = "../../fuzz/targets.rs"]
mod targets;

use std::fs;
use std::path::{Path, PathBuf};

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect()
}

#[test]
fn every_corpus_is_read_without_a_panic() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (name, target) in targets::TARGETS {
        let corpus = files(&root.join("../fuzz/corpus").join(name));
        assert!(!corpus.is_empty(), "{name} has a corpus");
        for file in corpus {
            // The test's output names the file at which it ended.
            println!("{}", file.display());
            target(&fs::read(&file).unwrap());
        }
    }
    for file in files(&root.join("tests/machines")) {
        println!("{}", file.display());
        targets::capture(&fs::read(&file).unwrap());
    }
}

#[test]
fn every_corpus_has_a_target_and_every_target_is_built() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let mut names: Vec<String> = fs::read_dir(root.join("corpus"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, targets::TARGETS.map(|(name, _)| name));
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    for name in names {
        assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        let target = fs::read_to_string(root.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(target.contains(&format!("targets::{name}(data)")), "{name}");
    }
}
