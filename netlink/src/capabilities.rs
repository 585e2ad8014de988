//! The capabilities of the process: what it was permitted becomes effective.
//!
//! A program file with capabilities `=p` starts, as an ordinary user, with them permitted and none effective; with `=ep` it would
//! not start at all where one of them is withheld. So what talks to the kernel raises them itself, before it starts threads:
//! capabilities belong to a thread, and a new one has those of who started it.

use std::io;

use rustix::thread::{capabilities, set_capabilities};

/// Makes the permitted capabilities of this thread effective; those of threads that it starts later, too.
///
/// # Errors
/// What the kernel says. Having been permitted none is no error.
pub fn raise() -> io::Result<()> {
    let mut sets = capabilities(None)?;
    if sets.effective == sets.permitted {
        return Ok(());
    }
    sets.effective = sets.permitted;
    Ok(set_capabilities(None, sets)?)
}

#[cfg(test)]
mod tests {
    use rustix::thread::CapabilitySet;

    use super::*;

    #[test]
    fn what_is_permitted_becomes_effective_and_nothing_else() {
        // On a thread of its own: the others keep theirs.
        let thread = std::thread::spawn(|| {
            let mut sets = capabilities(None).unwrap();
            let permitted = sets.permitted;
            sets.effective = CapabilitySet::empty();
            set_capabilities(None, sets).unwrap();
            raise().unwrap();
            let after = capabilities(None).unwrap();
            assert_eq!((after.effective, after.permitted), (permitted, permitted));
        });
        thread.join().unwrap();
    }
}
