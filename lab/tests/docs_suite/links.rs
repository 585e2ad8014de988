//! Links lead somewhere: to a file of the repository, and to a heading in it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Result, ensure};

use super::pages::{Page, files, pages, root};

/// The path of a link, from the root of the repository; `None`: it leads out of it.
fn resolve(page: &Path, target: &str) -> Option<PathBuf> {
    let mut path = page.parent().map(Path::to_owned).unwrap_or_default();
    for part in Path::new(target).components() {
        match part {
            Component::ParentDir => {
                if !path.pop() {
                    return None;
                }
            }
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    Some(path)
}

#[test]
fn every_link_leads_somewhere() -> Result<()> {
    let mut faults = Vec::new();
    let mut looked = 0;
    for page in pages()? {
        for link in page.links() {
            if link.starts_with("https://") || link.starts_with("http://") {
                continue;
            }
            looked += 1;
            let (target, anchor) = link.split_once('#').map_or((link.as_str(), None), |(t, a)| (t, Some(a)));
            let path = if target.is_empty() { Some(page.path.clone()) } else { resolve(&page.path, target) };
            let Some(path) = path else {
                faults.push(format!("{}: {link} leads out of the repository", page.path.display()));
                continue;
            };
            let there = root().join(&path);
            if !there.exists() {
                faults.push(format!("{}: {link}: there is no {}", page.path.display(), path.display()));
            } else if let Some(anchor) = anchor {
                let anchors = if there.is_file() {
                    Page { text: fs::read_to_string(there)?, path }.anchors()
                } else {
                    BTreeSet::new()
                };
                if !anchors.contains(anchor) {
                    faults.push(format!("{}: {link}: no such heading; there are {anchors:?}", page.path.display()));
                }
            }
        }
    }
    ensure!(looked > 50, "only {looked} links");
    ensure!(faults.is_empty(), "{faults:#?}");
    Ok(())
}

#[test]
fn every_page_of_the_docs_is_in_the_index() -> Result<()> {
    let index = Page::read("docs/README.md")?;
    let linked: BTreeSet<_> =
        index.links().iter().filter_map(|link| resolve(&index.path, link.split('#').next()?)).collect();
    let missing: Vec<_> = files(&[".md"])?
        .into_iter()
        .filter(|path| path.parent() == Some(Path::new("docs")) && path != Path::new("docs/README.md"))
        .filter(|path| !linked.contains(path))
        .collect();
    ensure!(missing.is_empty(), "not in docs/README.md: {missing:?}");
    Ok(())
}

#[test]
fn every_picture_is_used_and_says_in_words_what_it_shows() -> Result<()> {
    let pages = pages()?;
    let used: BTreeSet<_> =
        pages.iter().flat_map(|page| page.links().into_iter().filter_map(|link| resolve(&page.path, &link))).collect();
    let pictures = files(&[".svg"])?;
    ensure!(pictures.iter().any(|path| path.starts_with("docs/pictures")), "no pictures");
    for path in pictures.into_iter().filter(|path| path.starts_with("docs/pictures")) {
        ensure!(used.contains(&path), "{} is used by no page", path.display());
        let text = fs::read_to_string(root().join(&path))?;
        ensure!(
            text.contains("<title>") && text.contains("role=\"img\""),
            "{}: no title for who cannot see it",
            path.display()
        );
    }
    Ok(())
}
