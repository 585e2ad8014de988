//! The pages of the docs that are printed from the code: they say what the code says.
//!
//! `MARTLET_WRITE_DOCS=1 cargo test -p martlet-router --test docs` writes their tables anew.

use std::path::Path;

const BEGIN: &str = "<!-- table: printed from the code, see router/tests/docs.rs -->\n";
const END: &str = "<!-- end of table -->";

fn compare(page: &str, table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("docs/{page}: {error}"));
    let (head, rest) = text.split_once(BEGIN).unwrap_or_else(|| panic!("docs/{page}: {BEGIN:?} is missing"));
    let (printed, tail) = rest.split_once(END).unwrap_or_else(|| panic!("docs/{page}: {END:?} is missing"));
    if printed != table && std::env::var_os("MARTLET_WRITE_DOCS").is_some() {
        std::fs::write(&path, format!("{head}{BEGIN}{table}{END}{tail}"))
            .unwrap_or_else(|error| panic!("docs/{page}: {error}"));
        return;
    }
    let stale: Vec<_> = printed.lines().filter(|line| !table.lines().any(|wanted| wanted == *line)).collect();
    let missing: Vec<_> = table.lines().filter(|line| !printed.lines().any(|has| has == *line)).collect();
    let help = "MARTLET_WRITE_DOCS=1 cargo test -p martlet-router --test docs";
    assert!(
        printed == table,
        "docs/{page} is not what the code says\nno longer: {stale:#?}\nnew: {missing:#?}\n{help}"
    );
}

#[test]
fn the_page_of_metrics_is_the_table_of_the_code() {
    compare("reference-metrics.md", &martlet_router::metrics::markdown());
}

#[test]
fn the_page_of_variables_is_the_table_of_the_code() {
    compare("reference-environment.md", &martlet_router::options::markdown());
}
