//! The charts, the kustomizations, the dashboard and the alert rules: what they are made of, what they render, and how they live on
//! a real API server.
//!
//! `UPDATE=1 cargo test --profile lab -p martlet-lab --test charts generated` writes what is generated. Helm is built from its module
//! (`deploy/lab/helm`), promtool comes out of Debian's package (`deploy/lab/promtool.sh`).

mod charts_suite {
    pub mod generate;
    pub mod monitoring;
    pub mod render;
    pub mod server;
    pub mod tools;
}
