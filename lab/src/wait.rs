//! Waiting for a condition: generous limits, and the last value seen in the error.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// What is enough for anything that should happen at once, on a machine that is busy with other things.
pub const LIMIT: Duration = Duration::from_secs(30);

/// How often is looked.
const INTERVAL: Duration = Duration::from_millis(20);

/// What a look at a condition gave.
#[derive(Debug)]
pub enum Seen<T> {
    /// It holds.
    Yes(T),
    /// It does not hold yet: this was seen instead.
    NotYet(String),
}

impl<T> Seen<T> {
    /// Not yet: this was seen instead.
    pub fn not_yet(seen: impl Into<String>) -> Self {
        Self::NotYet(seen.into())
    }
}

/// Looks until the condition holds.
///
/// # Errors
/// It does not hold within `limit` (the text says what was seen last), or a look failed.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<Seen<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        match look()? {
            Seen::Yes(value) => return Ok(value),
            Seen::NotYet(seen) if start.elapsed() >= limit => {
                bail!("waited {} s for {what}; last seen: {seen}", limit.as_secs());
            }
            Seen::NotYet(_) => std::thread::sleep(INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_says_what_was_seen_last() {
        let error = until::<()>("rain", Duration::ZERO, || Ok(Seen::not_yet("sun"))).unwrap_err();
        assert_eq!(error.to_string(), "waited 0 s for rain; last seen: sun");
    }

    #[test]
    fn a_condition_that_holds_later_is_found() {
        let mut looks = 0;
        let look = || {
            looks += 1;
            Ok(if looks == 3 { Seen::Yes(looks) } else { Seen::not_yet("too early") })
        };
        assert_eq!(until("the third look", LIMIT, look).unwrap(), 3);
    }
}
