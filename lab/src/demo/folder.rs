//! The folder of objects that router and lb read: a copy of `deploy/demo` that the demo edits as a user would.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// What an endpoint is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// `ready: true`.
    Ready,
    /// `ready: false`.
    NotReady,
    /// Not in the file at all.
    Removed,
}

/// The folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    staging: PathBuf,
    /// The files of endpoints, as they were copied.
    slices: BTreeMap<String, String>,
}

impl Folder {
    /// Copies the YAML files of `from` to `<to>/objects`.
    ///
    /// # Errors
    /// The folder cannot be read or written, or has no EndpointSlice.
    pub fn copy(from: &Path, to: &Path) -> Result<Self> {
        let (path, staging) = (to.join("objects"), to.join("staging"));
        fs::create_dir(&path)?;
        fs::create_dir(&staging)?;
        let mut slices = BTreeMap::new();
        for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
            let file = entry?.path();
            let Some(name) = file.file_name().and_then(|name| name.to_str()) else { continue };
            if file.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            fs::write(path.join(name), &text)?;
            if text.contains("kind: EndpointSlice") {
                slices.insert(name.to_owned(), text);
            }
        }
        if slices.is_empty() {
            bail!("no EndpointSlice in {}", from.display());
        }
        Ok(Self { path, staging, slices })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the endpoints of app-1, app-2, .. as given, in all families; each file is replaced at once.
    ///
    /// # Errors
    /// A file cannot be written, or has no such endpoint.
    pub fn set(&self, endpoints: &[Endpoint]) -> Result<()> {
        let mut staged = Vec::new();
        for (name, original) in &self.slices {
            let text = edit(original, endpoints).with_context(|| format!("edit {name}"))?;
            let file = self.staging.join(name);
            fs::write(&file, text)?;
            staged.push((file, self.path.join(name)));
        }
        // Last, so that all families change as near together as can be.
        for (from, to) in staged {
            fs::rename(from, to)?;
        }
        Ok(())
    }
}

/// The text of an EndpointSlice with the endpoints as given. An entry begins with `- addresses:`.
fn edit(original: &str, endpoints: &[Endpoint]) -> Result<String> {
    let mut entries: Vec<String> = vec![String::new()];
    for line in original.lines() {
        if line.starts_with("- addresses:") {
            entries.push(String::new());
        }
        if let Some(entry) = entries.last_mut() {
            entry.push_str(line);
            entry.push('\n');
        }
    }
    for (number, endpoint) in endpoints.iter().enumerate() {
        let name = format!("name: app-{}\n", number + 1);
        let entry = entries.iter_mut().find(|entry| entry.starts_with("- ") && entry.contains(&name));
        let entry = entry.with_context(|| format!("no endpoint with `{}`", name.trim()))?;
        match endpoint {
            Endpoint::Ready => *entry = entry.replace("ready: false", "ready: true"),
            Endpoint::NotReady => *entry = entry.replace("ready: true", "ready: false"),
            Endpoint::Removed => entry.clear(),
        }
    }
    Ok(entries.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLICE: &str = "kind: EndpointSlice\nendpoints:\n- addresses:\n  - \"1.1.1.1\"\n  conditions:\n    ready: false\n  targetRef:\n    name: app-1\n- addresses:\n  - \"1.1.1.2\"\n  conditions:\n    ready: true\n  targetRef:\n    name: app-2\n";

    #[test]
    fn an_endpoint_is_made_ready_and_another_removed() {
        let text = edit(SLICE, &[Endpoint::Ready, Endpoint::Removed]).unwrap();
        assert_eq!(text, SLICE[..SLICE.find("- addresses:\n  - \"1.1.1.2\"").unwrap()].replace("false", "true"));
    }

    #[test]
    fn endpoints_that_are_not_named_stay_as_they_are() {
        assert_eq!(edit(SLICE, &[Endpoint::NotReady]).unwrap(), SLICE);
    }

    #[test]
    fn an_endpoint_that_is_not_there_is_named() {
        let error = edit(SLICE, &[Endpoint::Ready, Endpoint::Ready, Endpoint::Ready]).unwrap_err();
        assert_eq!(error.to_string(), "no endpoint with `name: app-3`");
    }
}
