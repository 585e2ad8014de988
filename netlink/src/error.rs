//! What can go wrong between us and the kernel. It knows no socket.

use std::io;

/// Why something could not be read from, or written to, the kernel.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The way to the kernel is broken: a socket could not be opened, written or read.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel understood and refused.
    #[error("the kernel refuses {what}: {}{}", io::Error::from_raw_os_error(*errno), Detail(detail))]
    Refused {
        /// The object or message.
        what: String,
        /// A positive `errno`.
        errno: i32,
        /// The kernel's own words, often empty.
        detail: String,
    },
    /// Another owner's route of the same table, prefix and metric is in the way; it is left alone.
    #[error("{what}: a route of another owner has the same table, prefix and metric; it is left alone")]
    Foreign {
        /// Our object.
        what: String,
    },
    /// The kernel, or the value, cannot do this.
    #[error("{0}")]
    Unsupported(String),
}

impl Error {
    /// For `map_err`: an input or output error while `action`.
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }

    /// A refusal by the kernel with a positive `errno`.
    pub(crate) fn refused(what: impl Into<String>, errno: i32, detail: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), errno, detail: detail.into() }
    }

    /// The `errno` of a refusal.
    pub const fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// The kernel's words in brackets, or nothing.
struct Detail<'a>(&'a str);

impl std::fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0) }
    }
}
