//! What the pages show is run: the quick start from its first block to its last, and each gateway's snippet with its daemon.
//!
//! Everything runs in mount, network and process namespaces of its own: `/run` is empty there, and nothing outlives them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use martlet_lab::demo::topology::find_martlet;

use super::pages::{Page, root};

/// A folder of a test, gone with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("martlet-docs-{name}-{}", std::process::id()));
        fs::create_dir(&path)?;
        // Daemons that give up root look into it.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs a script of bash apart from the machine; an error with all that it said unless it succeeds.
fn apart(name: &str, script: &Path, arguments: &[&str]) -> Result<String> {
    let martlet = find_martlet()?;
    let folder = martlet.parent().context("a folder")?.canonicalize()?;
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap_or_default());
    // Two minutes are many times what it takes; `timeout` kills what hangs, and with it its process namespace.
    let output = Command::new("timeout")
        .args([
            "--signal=KILL",
            "180",
            "unshare",
            "--mount",
            "--net",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child=KILL",
        ])
        .args(["bash", "-c", "mount -t tmpfs tmpfs /run && exec bash \"$@\"", "bash"])
        .arg(script)
        .args(arguments)
        .current_dir(root())
        .env("PATH", path)
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned();
    if !output.status.success() {
        bail!("{name}: {}:\n{said}", output.status);
    }
    Ok(said)
}

#[test]
fn the_quick_start_runs_from_its_first_block_to_its_last() -> Result<()> {
    let page = Page::read("docs/quick-start.md")?;
    let mut script = String::from("set -eux\n");
    let mut blocks = 0;
    for block in page.blocks() {
        ensure!(["sh", ""].contains(&block.language.as_str()), "a block of {:?}: it would not be run", block.language);
        if block.language == "sh" {
            script.push_str(&block.text);
            blocks += 1;
        }
    }
    ensure!(blocks >= 10, "{blocks} blocks");
    // Who runs this has built, and a build inside of a test would wait for the test.
    let (built, script) = (script.matches("make build\n").count(), script.replace("make build\n", ""));
    ensure!(built == 1, "one build");
    let script = script.replace("export PATH=\"$PWD/target/lab:$PATH\"\n", "");
    let scratch = Scratch::new("quick")?;
    let path = scratch.0.join("script");
    fs::write(&path, script)?;
    let said = apart("the quick start", &path, &[])?;
    ensure!(said.contains("Established") && said.contains("<- here"), "{said}");
    Ok(())
}

fn gateway(make: &str) -> Result<()> {
    let page = Page::read("docs/your-gateway.md")?;
    let snippets: Vec<_> = page.blocks().into_iter().filter(|block| block.language == make).collect();
    ensure!(snippets.len() == 1, "{} snippets of {make}", snippets.len());
    let scratch = Scratch::new(make)?;
    let file = scratch.0.join("gateway.conf");
    fs::write(&file, &snippets[0].text)?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/docs_suite/gateway.sh");
    let objects = root().join("deploy/demo").canonicalize()?;
    let said = apart(make, &script, &[make, &file.to_string_lossy(), &objects.to_string_lossy()])?;
    println!("    {}", said.lines().last().unwrap_or_default());
    Ok(())
}

#[test]
fn frr_with_the_snippet_of_the_page_has_the_vips() -> Result<()> {
    gateway("frr")
}

#[test]
fn bird_with_the_snippet_of_the_page_has_the_vips() -> Result<()> {
    gateway("bird")
}

#[test]
fn openbgpd_with_the_snippet_of_the_page_has_the_vips() -> Result<()> {
    gateway("openbgpd")
}

#[test]
fn gobgp_with_the_snippet_of_the_page_has_the_vips() -> Result<()> {
    gateway("gobgp")
}

#[test]
fn every_yaml_that_a_page_shows_is_yaml() -> Result<()> {
    let mut looked = 0;
    for page in super::pages::pages()? {
        for block in page.blocks().iter().filter(|block| block.language == "yaml") {
            looked += 1;
            let parsed: Result<Vec<serde_json::Value>, _> = serde_saphyr::from_multiple(&block.text);
            parsed.with_context(|| format!("{}: {}", page.path.display(), block.text))?;
        }
        for block in page.blocks().iter().filter(|block| block.language == "json") {
            looked += 1;
            let parsed: Result<serde_json::Value, _> = serde_json::from_str(&block.text);
            parsed.with_context(|| format!("{}: {}", page.path.display(), block.text))?;
        }
    }
    ensure!(looked > 3, "{looked} blocks");
    Ok(())
}
