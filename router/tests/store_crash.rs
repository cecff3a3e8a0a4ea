//! SIGKILL in the middle of commits, again and again: what the store answered is there, and nothing
//! is there in part.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use thalweg_router::control::store::embedded::{EmbeddedOptions, EmbeddedStore};
use thalweg_router::control::store::{Expectation, Revision, Store, Transaction, Watch, snapshot};

const ROUNDS: usize = 20;
const WRITERS: usize = 8;
const PARTS: usize = 4;
/// Where the child finds the store, and the round it is in.
const PATH_VARIABLE: &str = "THALWEG_TEST_STORE";
const ROUND_VARIABLE: &str = "THALWEG_TEST_ROUND";
const ANSWERED: &str = "answered ";
/// Far longer than all rounds take.
const LONG: Duration = Duration::from_secs(120);

fn open(path: &Path) -> EmbeddedStore {
    EmbeddedStore::open(path, EmbeddedOptions::default()).expect("the store opens")
}

/// A transaction whose keys all name it.
fn whole(name: &str) -> Transaction {
    (0..PARTS).fold(Transaction::new(), |transaction, part| {
        let key = format!("{name}/{part}");
        transaction.expect(key.clone(), Expectation::Absent).put(key, name.repeat(20))
    })
}

/// Run by the other test in a process of its own, which ends by SIGKILL.
#[test]
#[ignore = "the child of the test below"]
fn child_that_commits_until_it_is_killed() {
    let path = std::env::var(PATH_VARIABLE).expect("only run by its parent");
    let round = std::env::var(ROUND_VARIABLE).expect("only run by its parent");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = open(Path::new(&path));
        for writer in 0..WRITERS {
            let (store, round) = (store.clone(), round.clone());
            tokio::spawn(async move {
                for number in 0_u32.. {
                    let name = format!("{round}/{writer}/{number}");
                    let revision = store.commit(whole(&name)).await.expect("nothing fails").0;
                    let line = format!("{ANSWERED}{revision} {name}\n");
                    std::io::stdout().write_all(line.as_bytes()).expect("the parent listens");
                }
            });
        }
        tokio::time::sleep(LONG).await;
    });
    panic!("nobody killed the child");
}

/// Lets a child commit, and kills it; what it was answered: revisions and names.
fn run_and_kill(path: &Path, round: usize) -> Vec<(u64, String)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "child_that_commits_until_it_is_killed"])
        .env(PATH_VARIABLE, path)
        .env(ROUND_VARIABLE, round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Each round ends after another number of answers; some come while the signal is on its way.
    let mut answers_left = 3 + round * 13 % 97;
    let mut answered = Vec::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while lines.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
        // The last line may have been cut short.
        if let Some((_, answer)) = line.split_once(ANSWERED)
            && let Some(answer) = answer.strip_suffix('\n')
        {
            let (revision, name) = answer.split_once(' ').expect("a revision and a name");
            answered.push((revision.parse().expect("a revision"), name.to_owned()));
            answers_left -= usize::from(answers_left > 0);
            if answers_left == 0 {
                child.kill().expect("it runs until it is killed");
            }
        }
        line.clear();
    }
    let status = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
    answered
}

#[test]
fn killed_in_the_middle_of_commits_a_store_keeps_what_it_answered() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("metadata");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let started = Instant::now();
    let mut answered = Vec::new();
    for round in 0..ROUNDS {
        let mut now = run_and_kill(&path, round);
        assert!(now.len() >= 3, "round {round}");
        answered.append(&mut now);
        runtime.block_on(check(&path, &answered));
        assert!(started.elapsed() < LONG);
    }
    println!("{} rounds, {} answers, {:?}", ROUNDS, answered.len(), started.elapsed());
}

async fn check(path: &Path, answered: &[(u64, String)]) {
    let store = open(path);
    let found = snapshot(&store, "".into()).await.unwrap();
    let keys = found.entries.iter().map(|entry| String::from_utf8(entry.key.to_vec()).unwrap());
    let keys: BTreeSet<String> = keys.collect();
    assert_eq!(keys.len() as u64, found.revision.0 * PARTS as u64, "every revision is whole");
    for entry in &found.entries {
        let name = String::from_utf8(entry.value.0.to_vec()).unwrap();
        let key = String::from_utf8(entry.key.to_vec()).unwrap();
        let (own, _) = key.rsplit_once('/').unwrap();
        assert_eq!(name, own.repeat(20));
        assert!((0..PARTS).all(|part| keys.contains(&format!("{own}/{part}"))), "{own} is whole");
    }
    let mut watch = store.watch("".into(), store.status().compacted).await.unwrap();
    let mut names = Vec::new();
    while watch.revision() < found.revision {
        let set = watch.next().await.unwrap();
        let key = String::from_utf8(set.changes[0].key().to_vec()).unwrap();
        assert_eq!(set.changes.len(), PARTS);
        names.push(key.rsplit_once('/').unwrap().0.to_owned());
    }
    for (revision, name) in answered {
        let place = Revision(*revision).0 as usize - 1;
        assert_eq!(names.get(place), Some(name), "what was answered is at its revision");
    }
    store.close().await;
}
