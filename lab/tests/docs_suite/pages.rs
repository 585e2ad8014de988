//! The pages, cut into what the tests look at: headings, links, blocks, rows of tables.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// A page of the repository.
#[derive(Debug)]
pub struct Page {
    /// From the root of the repository.
    pub path: PathBuf,
    pub text: String,
}

/// A fenced block.
#[derive(Debug)]
pub struct Block {
    /// What stands behind the fence.
    pub language: String,
    pub text: String,
}

/// The root of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A file of the repository.
pub fn file(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| format!("read {path}"))
}

/// All files of the repository with one of these ends of their names, paths from its root. Build results are not of it.
pub fn files(ends: &[&str]) -> Result<Vec<PathBuf>> {
    fn walk(folder: &Path, root: &Path, ends: &[&str], found: &mut Vec<PathBuf>) -> Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if path.is_dir() {
                if !["target", ".git", "node_modules"].contains(&name) {
                    walk(&path, root, ends, found)?;
                }
            } else if ends.iter().any(|end| name.ends_with(end)) {
                found.push(path.strip_prefix(root)?.to_owned());
            }
        }
        Ok(())
    }
    let mut found = Vec::new();
    walk(&root(), &root(), ends, &mut found)?;
    found.sort();
    Ok(found)
}

/// All pages.
pub fn pages() -> Result<Vec<Page>> {
    let paths = files(&[".md"])?;
    ensure!(paths.len() > 15, "only {} pages", paths.len());
    paths.into_iter().map(|path| Ok(Page { text: fs::read_to_string(root().join(&path))?, path })).collect()
}

impl Page {
    /// One page.
    pub fn read(path: &str) -> Result<Self> {
        Ok(Self { path: path.into(), text: file(path)? })
    }

    /// Its fenced blocks.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let mut open: Option<Block> = None;
        for line in self.text.lines() {
            match (&mut open, line.trim_start().strip_prefix("```")) {
                (None, Some(language)) => {
                    open = Some(Block { language: language.trim().to_owned(), text: String::new() });
                }
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (Some(block), None) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                (None, None) => {}
            }
        }
        blocks
    }

    /// Its lines outside of fenced blocks.
    pub fn prose(&self) -> Vec<&str> {
        let mut fenced = false;
        let outside = self.text.lines().filter(|line| {
            let fence = line.trim_start().starts_with("```");
            fenced ^= fence;
            !fence && !fenced
        });
        outside.collect()
    }

    /// The targets of its links and pictures, outside of code.
    pub fn links(&self) -> Vec<String> {
        let mut found = Vec::new();
        for line in self.prose() {
            // Every other part stands between backticks; a link's text may have some.
            let mut rest = line;
            while let Some((_, after)) = rest.split_once("](") {
                if let Some((target, next)) = after.split_once(')') {
                    found.push(target.split_whitespace().next().unwrap_or_default().to_owned());
                    rest = next;
                } else {
                    break;
                }
            }
        }
        found
    }

    /// What `#..` may lead to: as GitHub makes it of headings.
    pub fn anchors(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for line in self.prose() {
            let Some(title) = line.strip_prefix('#').map(|rest| rest.trim_start_matches('#')) else { continue };
            let Some(title) = title.strip_prefix(' ') else { continue };
            // Of a link the text counts.
            let mut plain = String::new();
            let mut rest = title;
            while let Some((before, after)) = rest.split_once('[') {
                let (text, after) = after.split_once("](").unwrap_or((after, ""));
                plain.push_str(before);
                plain.push_str(text);
                rest = after.split_once(')').map_or("", |(_, rest)| rest);
            }
            plain.push_str(rest);
            let kept = plain.trim().to_lowercase();
            let kept = kept.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
            let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
            let mut unique = anchor.clone();
            let mut number = 1;
            while !found.insert(unique.clone()) {
                unique = format!("{anchor}-{number}");
                number += 1;
            }
        }
        found
    }

    /// The rows of its tables that stand below a head with this word in its last cell: cells without the bars.
    pub fn rows(&self, last: &str) -> Vec<Vec<String>> {
        let cells = |line: &str| -> Vec<String> {
            let inner = line.trim().trim_start_matches('|').trim_end_matches('|');
            // A bar in code is written with a backslash.
            inner.replace("\\|", "\u{0}").split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
        };
        let mut found = Vec::new();
        let mut inside = false;
        for line in self.prose() {
            if !line.starts_with('|') {
                inside = false;
            } else if cells(line).last().is_some_and(|cell| cell == last) {
                inside = true;
            } else if inside && !line.starts_with("|---") {
                found.push(cells(line));
            }
        }
        found
    }
}

/// What stands between backticks.
pub fn code(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}
