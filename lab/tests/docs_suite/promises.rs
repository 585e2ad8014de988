//! What the documents promise is shown: each named test exists, each command is one that there is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::pages::{Page, code, file, files, pages, root};
use super::reference::{commands, help};

/// The names of all functions in the tests and unit tests of the repository.
fn functions() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for path in files(&[".rs"])? {
        let text = fs::read_to_string(root().join(path))?;
        for after in text.split("fn ").skip(1) {
            let name: String = after.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            found.insert(name);
        }
    }
    ensure!(found.len() > 1000, "only {} functions", found.len());
    Ok(found)
}

/// The targets of the Makefile.
fn targets() -> Result<BTreeSet<String>> {
    let makefile = file("Makefile")?;
    let heads = makefile
        .lines()
        .filter(|line| !line.starts_with(['\t', ' ', '.', '#']))
        .filter_map(|line| line.split_once(':'));
    Ok(heads.map(|(target, _)| target.trim().to_owned()).collect())
}

/// Whether code in the column of proofs names something that is there.
fn shown(word: &str, functions: &BTreeSet<String>, targets: &BTreeSet<String>, commands: &BTreeSet<String>) -> bool {
    let mut words = word.split_whitespace();
    match words.next() {
        Some("make") => words.next().is_some_and(|target| targets.contains(target)),
        Some("martlet") => commands.contains(words.next().unwrap_or_default()),
        Some(path) if path.contains('/') => root().join(path).exists(),
        Some(name) => functions.contains(name),
        None => false,
    }
}

/// Pages with a column that names the proof of each row, and the head of that column.
const TABLES: [(&str, &str, usize); 4] = [
    ("docs/features.md", "shown by", 32),
    ("docs/operations.md", "shown by", 15),
    ("docs/security.md", "shown by", 8),
    ("docs/migration.md", "shown by", 10),
];

#[test]
fn each_row_names_a_test_or_a_command_that_exists() -> Result<()> {
    let (functions, targets) = (functions()?, targets()?);
    let commands: BTreeSet<_> = commands()?.into_iter().filter_map(|words| words.first().cloned()).collect();
    let mut faults = Vec::new();
    for (path, head, least) in TABLES {
        let rows = Page::read(path)?.rows(head);
        ensure!(rows.len() >= least, "{path}: {} rows below a column {head:?}, at least {least}", rows.len());
        for row in rows {
            let proof = row.last().context("cells")?;
            let named = code(proof);
            // What Martlet does not do needs no proof, but says so.
            if named.is_empty() && !proof.starts_with("not ") {
                faults.push(format!("{path}: {row:?}: names nothing"));
            }
            for word in named.into_iter().filter(|word| !shown(word, &functions, &targets, &commands)) {
                faults.push(format!("{path}: {word}: there is no such test, target, command or file"));
            }
        }
    }
    ensure!(faults.is_empty(), "{faults:#?}");
    Ok(())
}

/// The lines of shell in a text, with those that go on joined.
fn lines(text: &str) -> Vec<String> {
    text.replace("\\\n", " ").lines().map(str::to_owned).collect()
}

#[test]
fn each_command_in_a_shell_block_is_one_that_there_is() -> Result<()> {
    let known = commands()?;
    let targets = targets()?;
    let mut helps = BTreeMap::new();
    let mut faults = Vec::new();
    let mut looked = 0;
    for page in pages()? {
        for block in page.blocks().iter().filter(|block| ["sh", "bash", "shell"].contains(&block.language.as_str())) {
            for line in lines(&block.text) {
                let words: Vec<_> =
                    line.split_whitespace().map(|word| word.trim_matches(['"', '\'', ')', ';', '`'])).collect();
                let at = |what: &str| format!("{}: {what}: {}", page.path.display(), line.trim());
                for (place, word) in words.iter().enumerate().filter(|(_, word)| **word == "make") {
                    // `make` as a word of a sentence in a comment is none.
                    let comment = words[..place].iter().any(|word| word.starts_with('#'));
                    let target = words.get(place + 1).copied().unwrap_or_default();
                    if !comment && !targets.contains(target) {
                        faults.push(at(&format!("no target {target}: {word}")));
                    }
                }
                let Some(place) = words.iter().position(|word| *word == "martlet") else { continue };
                let after: Vec<String> = words[place + 1..].iter().map(|word| (*word).to_owned()).collect();
                let Some(first) = after.first().filter(|word| !word.starts_with('-') && !word.is_empty()) else {
                    continue;
                };
                if first.contains(['/', '=', '.']) || ["--namespace", "deploy/helm/martlet"].contains(&first.as_str()) {
                    continue;
                }
                // The name of a release or of a chart, not the program.
                if words[..place].iter().any(|word| ["helm", "kubectl"].contains(word))
                    && !words[..place].contains(&"--")
                {
                    continue;
                }
                let Some(command) = known.iter().rev().find(|command| after.starts_with(command)) else {
                    faults.push(at("no such command"));
                    continue;
                };
                looked += 1;
                if !helps.contains_key(command) {
                    helps.insert(command.clone(), help(command)?);
                }
                let end = after.iter().position(|word| ["|", "#", ">", "&&", "||", "&"].contains(&word.as_str()));
                for flag in after[..end.unwrap_or(after.len())].iter().filter(|word| word.starts_with("--")) {
                    let flag = flag.split('=').next().unwrap_or_default();
                    if flag.len() > 2 && !helps[command].contains(flag) {
                        faults.push(at(&format!("no flag {flag}")));
                    }
                }
            }
        }
    }
    ensure!(looked > 20, "only {looked} commands");
    ensure!(faults.is_empty(), "{faults:#?}");
    Ok(())
}

#[test]
fn no_page_speaks_of_what_is_not_finished() -> Result<()> {
    for page in pages()?.iter().filter(|page| page.path.starts_with("docs")) {
        for word in ["TODO", "TBD", "coming soon", "FIXME", "in a future"] {
            ensure!(!page.text.contains(word), "{}: {word}", page.path.display());
        }
    }
    Ok(())
}

/// What the first cells of the tables of a page name.
fn first_cells(page: &Page) -> BTreeSet<String> {
    let rows = page.prose().into_iter().filter(|line| line.starts_with("| `"));
    let cells = rows.filter_map(|row| row.trim_start_matches('|').split('|').next());
    cells.flat_map(code).map(str::to_owned).collect()
}

#[test]
fn the_page_of_conditions_names_what_the_code_says_and_nothing_else() -> Result<()> {
    let page = Page::read("docs/reference-conditions.md")?;
    let sources = files(&[".rs"])?
        .into_iter()
        .filter(|path| ["api/src", "controller/src", "router/src", "lb/src"].iter().any(|of| path.starts_with(of)))
        .map(|path| Ok(fs::read_to_string(root().join(path))?))
        .collect::<Result<Vec<_>>>()?
        .concat();
    let mut faults = Vec::new();
    for word in page.prose().iter().filter(|line| line.starts_with('|')).flat_map(|line| code(line)) {
        let camel =
            word.starts_with(|c: char| c.is_ascii_uppercase()) && word.chars().all(|c| c.is_ascii_alphanumeric());
        if camel && !sources.contains(&format!("\"{word}\"")) {
            faults.push(format!("{word}: no code says this word"));
        }
    }
    let named = first_cells(&page);
    let between = |text: &str, begin: &str, end: &str| -> Result<String> {
        let (_, rest) = text.split_once(begin).with_context(|| format!("no {begin:?}"))?;
        Ok(rest.split_once(end).with_context(|| format!("no {end:?}"))?.0.to_owned())
    };
    let literals = |text: &str| -> BTreeSet<String> {
        let words = text.split('"').skip(1).step_by(2).filter(|word| {
            word.len() > 2
                && word.starts_with(|c: char| c.is_ascii_uppercase())
                && word.chars().all(|c| c.is_ascii_alphanumeric())
        });
        words.map(str::to_owned).collect()
    };
    // Why a VIP is not announced, what a router notes, and the Events of the controller.
    let gate = file("router/src/gate.rs")?;
    let mut said = literals(&between(&gate, "pub const fn word(", "\n    }\n")?);
    said.extend(literals(&between(&file("router/src/core/status.rs")?, "let words = [", "];")?));
    let notes = file("controller/src/notes.rs")?;
    let notes = notes.replace("\"PodsAttached\" | \"NetworksResolved\"", "").replace("\"SubnetsAccepted\"", "");
    let events = literals(
        &notes.replace("\"EndpointsAccepted\"", "").replace("\"GatewayRouter\"", "").replace("\"Gateway\"", ""),
    );
    said.extend(events.into_iter().filter(|word| !["False", "Up", "True"].contains(&word.as_str())));
    ensure!(said.len() > 15, "{said:?}");
    faults.extend(said.difference(&named).map(|word| format!("{word}: the code says it, the page does not")));
    ensure!(faults.is_empty(), "{faults:#?}");
    Ok(())
}
