//! What an API server would refuse, refused here too: specs as written -> values that cannot be wrong.
//!
//! In a cluster the server has applied the same rules already (see `deploy/crds/`); a folder has no server. A refusal names the
//! field, the value and what would be accepted. What objects mean together is not known here (see [`crate::accept`]).

mod route;
mod router;
pub mod value;

use std::fmt;

pub use route::route;
pub use router::router;

/// Why a field was refused.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// The path of the field, such as `spec.bgp.holdTime`.
    pub field: String,
    /// Its value, as written.
    pub value: String,
    /// What would be accepted.
    pub remedy: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, value, remedy } = self;
        match value.as_str() {
            "" => write!(f, "{field}: {remedy}"),
            value => write!(f, "{field}: `{value}`: {remedy}"),
        }
    }
}

/// Several refusals as one message.
pub fn together(refusals: &[Refusal]) -> String {
    refusals.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Collects refusals while a spec is parsed, so that all of them are told at once.
#[derive(Debug, Default)]
struct Check {
    refusals: Vec<Refusal>,
}

/// The longest value that a message repeats, characters.
const SHOWN: usize = 80;

impl Check {
    fn refuse(&mut self, field: impl fmt::Display, value: impl fmt::Display, remedy: impl Into<String>) {
        let value = value.to_string().chars().take(SHOWN).collect();
        self.refusals.push(Refusal { field: field.to_string(), value, remedy: remedy.into() });
    }

    /// The value if there is one, else a refusal.
    fn parsed<T>(
        &mut self,
        field: impl fmt::Display,
        value: impl fmt::Display,
        parsed: Option<T>,
        remedy: &str,
    ) -> Option<T> {
        if parsed.is_none() {
            self.refuse(field, value, remedy);
        }
        parsed
    }

    /// A number in a range.
    fn number<T: TryFrom<i64>>(&mut self, field: &str, value: i64, range: std::ops::RangeInclusive<i64>) -> Option<T> {
        let remedy = format!("must be a number from {} to {}", range.start(), range.end());
        let parsed = range.contains(&value).then(|| T::try_from(value).ok()).flatten();
        self.parsed(field, value, parsed, &remedy)
    }

    fn finish<T>(self, value: Option<T>) -> Result<T, Vec<Refusal>> {
        match value {
            Some(value) if self.refusals.is_empty() => Ok(value),
            _ => Err(self.refusals),
        }
    }
}
