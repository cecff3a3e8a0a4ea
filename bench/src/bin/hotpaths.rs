//! Takes one hot path a number of times and ends: what instruction counts are taken of.
//!
//! `hotpaths --list` prints the names; `hotpaths NAME COUNT` takes that path COUNT times.

use std::process::ExitCode;

use thalweg_bench::hotpaths::HOT_PATHS;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<&str>>()[..] {
        ["--list"] => {
            HOT_PATHS.iter().for_each(|path| println!("{}", path.name));
            ExitCode::SUCCESS
        }
        [name, count] => {
            let path = HOT_PATHS.iter().find(|path| path.name == name);
            let (Some(path), Ok(count)) = (path, count.parse::<u64>()) else {
                eprintln!("no path {name}, or {count} is no number; --list prints the names");
                return ExitCode::FAILURE;
            };
            let mut take = (path.make)();
            for _ in 0..count {
                std::hint::black_box(take());
            }
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: hotpaths --list | hotpaths NAME COUNT");
            ExitCode::FAILURE
        }
    }
}
