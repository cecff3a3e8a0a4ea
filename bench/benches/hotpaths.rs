//! Times the hot paths, and a core on the device that does nothing on one thread and on all.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use thalweg_bench::hotpaths::{HOT_PATHS, NoopCore};

fn hot_paths(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("path");
    for path in HOT_PATHS {
        let mut take = (path.make)();
        group.bench_function(path.name, |bencher| bencher.iter(|| black_box(take())));
    }
    group.finish();
}

/// Cores share nothing: twice the cores take twice the batches, as long as each has a processor.
fn scaling(criterion: &mut Criterion) {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let mut group = criterion.benchmark_group("cores");
    for cores in 1..=processors {
        group.throughput(Throughput::Elements(cores as u64));
        group.bench_function(BenchmarkId::from_parameter(cores), |bencher| {
            bencher.iter_custom(|count| {
                let run = || {
                    let mut core = NoopCore::new(10, 100);
                    let started = Instant::now();
                    (0..count).for_each(|_| {
                        black_box(core.append_one());
                    });
                    started.elapsed()
                };
                std::thread::scope(|scope| {
                    let threads: Vec<_> = (0..cores).map(|_| scope.spawn(run)).collect();
                    let spans = threads.into_iter().map(|thread| thread.join().expect("no panic"));
                    spans.max().unwrap_or(Duration::ZERO)
                })
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = hot_paths, scaling
}
criterion_main!(benches);
