//! BFD: how soon silence is noticed, and how many sessions one thread holds, beside FRR's bfdd and BIRD.
//!
//! A stall detector looks at the clock meanwhile: on a machine that slept, a late packet says nothing about who sent it.

mod detection;
mod scale;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Options, Row};
use crate::sys;

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Martlet,
    Frr,
    Bird,
}

impl Who {
    const ALL: [Self; 3] = [Self::Martlet, Self::Frr, Self::Bird];

    const fn name(self) -> &'static str {
        match self {
            Self::Martlet => "martlet",
            Self::Frr => "frr",
            Self::Bird => "bird",
        }
    }
}

/// Measures all of it.
pub fn measure(options: &Options) -> Result<Vec<Row>> {
    let began = Instant::now();
    let mut rows = detection::measure(options.quick)?;
    rows.extend(scale::measure(options.quick, began)?);
    Ok(rows)
}

/// This program, which is the endpoint too.
fn program() -> Result<PathBuf> {
    Ok(std::env::current_exe()?)
}

/// Looks at the clock every 2 ms, on each CPU before anybody else, and remembers the longest time between two looks: so long did
/// the machine, or one of its CPUs, stand still.
struct StallDetector {
    worst_us: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl StallDetector {
    fn start() -> Self {
        let (worst_us, end) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..cpus).map(|cpu| {
            let (worst, ended) = (Arc::clone(&worst_us), Arc::clone(&end));
            std::thread::spawn(move || {
                // Without that it sees other stalls too: then fewer runs count.
                let _ = sys::take_cpu(cpu);
                let mut before = Instant::now();
                while !ended.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(2));
                    let gap = u64::try_from(before.elapsed().as_micros()).unwrap_or(u64::MAX);
                    before = Instant::now();
                    worst.fetch_max(gap, Ordering::Relaxed);
                }
            })
        });
        Self { threads: threads.collect(), worst_us, end }
    }

    /// The longest gap so far.
    fn worst(&self) -> Duration {
        Duration::from_micros(self.worst_us.load(Ordering::Relaxed))
    }
}

impl Drop for StallDetector {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
