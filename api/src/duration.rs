//! Durations as Go and Kubernetes write them: `24s`, `300ms`, `1m`, `1h`, `1.5s`, `1h30m`, `0`.
#![warn(clippy::indexing_slicing)]

use std::time::Duration;

use nom::branch::alt;
use nom::bytes::complete::tag;
use nom::character::complete::{char, digit1};
use nom::combinator::{all_consuming, opt, value};
use nom::multi::fold_many1;
use nom::sequence::preceded;
use nom::{IResult, Parser};

/// The longest text of a duration, octets.
const LONGEST: usize = 32;

/// A text that is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a duration such as 300ms, 24s, 1.5s, 1m or 1h30m")]
pub struct NotADuration;

/// Reads a duration. A sign is refused, and so is a number without a unit, but for `0`.
///
/// # Errors
///
/// Any other text, and what does not fit in 64 bits of nanoseconds.
pub fn parse(text: &str) -> Result<Duration, NotADuration> {
    if text.len() > LONGEST {
        return Err(NotADuration);
    }
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let terms = fold_many1(term, || Some(0_u64), |sum: Option<u64>, nanos| sum?.checked_add(nanos?));
    let (_, nanos) = all_consuming(terms).parse(text).map_err(|_| NotADuration)?;
    nanos.map(Duration::from_nanos).ok_or(NotADuration)
}

/// A number with its unit, in nanoseconds; `None` where 64 bits do not hold it.
fn term(input: &str) -> IResult<&str, Option<u64>> {
    let (input, whole) = digit1.parse(input)?;
    let (input, fraction) = opt(preceded(char('.'), digit1)).parse(input)?;
    let (input, unit) = alt((
        value(1_u64, tag("ns")),
        value(1_000, tag("us")),
        value(1_000_000, tag("ms")),
        value(1_000_000_000, tag("s")),
        value(60_000_000_000, tag("m")),
        value(3_600_000_000_000, tag("h")),
    ))
    .parse(input)?;
    Ok((input, nanos(whole, fraction.unwrap_or(""), unit)))
}

fn nanos(whole: &str, fraction: &str, unit: u64) -> Option<u64> {
    let mut nanos = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    let mut weight = unit;
    for digit in fraction.chars() {
        weight /= 10;
        nanos = nanos.checked_add(weight.checked_mul(u64::from(digit.to_digit(10)?))?)?;
    }
    Some(nanos)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, millis) in [
            ("24s", 24_000),
            ("300ms", 300),
            ("1m", 60_000),
            ("1h", 3_600_000),
            ("1.5s", 1500),
            ("1m30s", 90_000),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(parse("1.5us"), Ok(Duration::from_nanos(1500)));
        for text in ["", "1", "s", "-1s", "1 s", "1d", "1s ", "00", "9999999999999h", "1.s", ".5s", "∞"] {
            assert_eq!(parse(text), Err(NotADuration), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[0-9.a-zµ+-]{0,40}") {
            let _ = parse(&text);
        }

        #[test]
        fn a_duration_of_milliseconds_is_read_back(millis in 0_u64..=4_294_000) {
            prop_assert_eq!(parse(&format!("{millis}ms")), Ok(Duration::from_millis(millis)));
            let seconds = format!("{}.{:03}s", millis / 1000, millis % 1000);
            prop_assert_eq!(parse(&seconds), Ok(Duration::from_millis(millis)));
        }
    }
}
