//! The documents: what they show runs, what they name exists, what they refer to is there, and what is printed from the code is what the
//! code says.
//!
//! `UPDATE=1 cargo test --profile lab -p martlet-lab --test docs generated` writes what is generated.

mod docs_suite {
    pub mod links;
    pub mod pages;
    pub mod promises;
    pub mod reference;
    pub mod runs;
}
