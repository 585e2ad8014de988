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
    let mut rows = detection::measure(options.quick)?;
    rows.extend(scale::measure(options.quick)?);
    Ok(rows)
}

/// This program, which is the endpoint too.
fn program() -> Result<PathBuf> {
    Ok(std::env::current_exe()?)
}

/// Looks at the clock every 2 ms and remembers the longest time between two looks.
struct StallDetector {
    worst_us: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StallDetector {
    fn start() -> Self {
        let (worst_us, end) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (worst, ended) = (Arc::clone(&worst_us), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            let mut before = Instant::now();
            while !ended.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(2));
                let gap = u64::try_from(before.elapsed().as_micros()).unwrap_or(u64::MAX);
                before = Instant::now();
                worst.fetch_max(gap, Ordering::Relaxed);
            }
        });
        Self { worst_us, end, thread: Some(thread) }
    }

    /// The longest gap so far.
    fn worst(&self) -> Duration {
        Duration::from_micros(self.worst_us.load(Ordering::Relaxed))
    }
}

impl Drop for StallDetector {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
