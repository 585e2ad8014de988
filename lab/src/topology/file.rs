//! A topology file: the part of containerlab's format that needs no containers. What is not in it is an error with key and line.
//!
//! ```text
//! name, topology.defaults, topology.nodes.NAME, topology.links[].endpoints
//! defaults and nodes: kind (linux), image, network-mode (none, container:NODE), privileged (false), cap-add, user,
//!                     entrypoint, cmd, env, sysctls, binds, exec
//! ```
//! `image`, `cap-add` and `user` are for containers and mean nothing here. Lists of a node follow those of the defaults, maps are
//! merged, the node's word counts. `${NAME:=otherwise}` is replaced before the file is read.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

/// A topology, checked: what its links and its shared namespaces name is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topology {
    /// What it calls itself.
    pub name: String,
    /// Its nodes by name.
    pub nodes: BTreeMap<String, Node>,
    /// Its links, two ends each.
    pub links: Vec<[End; 2]>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// It shares the network namespace of this node.
    pub joins: Option<String>,
    /// Its first process.
    pub command: Vec<String>,
    /// The environment of its processes.
    pub env: BTreeMap<String, String>,
    /// Set in its network namespace before anything runs.
    pub sysctls: BTreeMap<String, String>,
    /// Files and folders of the machine that it sees.
    pub binds: Vec<Bind>,
    /// Run one after the other once its links are there.
    pub exec: Vec<Vec<String>>,
}

/// A file or folder of the machine at a place of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// On the machine.
    pub source: PathBuf,
    /// In the node.
    pub target: String,
    /// The node cannot write it.
    pub read_only: bool,
}

/// One end of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// A node.
    pub node: String,
    /// The name of its interface.
    pub interface: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: String,
    topology: Graph,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Graph {
    #[serde(default)]
    defaults: Written,
    nodes: BTreeMap<String, Option<Written>>,
    #[serde(default)]
    links: Vec<Link>,
}

/// A node, or the defaults of all, as they stand in the file.
#[derive(Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Written {
    #[serde(rename = "kind")]
    _kind: Option<Kind>,
    #[serde(rename = "image")]
    _image: Option<String>,
    #[serde(rename = "user")]
    _user: Option<String>,
    #[serde(default, rename = "cap-add")]
    _cap_add: Vec<String>,
    network_mode: Option<NetworkMode>,
    #[serde(rename = "privileged")]
    _privileged: Option<Unprivileged>,
    entrypoint: Option<Words>,
    cmd: Option<Words>,
    #[serde(default)]
    env: BTreeMap<String, String>,
    #[serde(default)]
    sysctls: BTreeMap<String, String>,
    #[serde(default)]
    binds: Vec<Mount>,
    #[serde(default)]
    exec: Vec<Words>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Linux,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(try_from = "bool")]
struct Unprivileged;

impl TryFrom<bool> for Unprivileged {
    type Error = &'static str;

    fn try_from(privileged: bool) -> Result<Self, Self::Error> {
        if privileged { Err("privileged: accepted: false") } else { Ok(Self) }
    }
}

#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
enum NetworkMode {
    Own,
    Of(String),
}

impl TryFrom<String> for NetworkMode {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.strip_prefix("container:") {
            Some(node) => Ok(Self::Of(node.to_owned())),
            None if text == "none" => Ok(Self::Own),
            None => Err(format!("network-mode {text}: accepted: none, container:NODE")),
        }
    }
}

#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
struct Words(Vec<String>);

impl TryFrom<String> for Words {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        words(&text).map(Self)
    }
}

#[derive(Clone, Deserialize)]
#[serde(try_from = "String")]
struct Mount {
    source: String,
    target: String,
    read_only: bool,
}

impl TryFrom<String> for Mount {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let (source, target, read_only) = match text.split(':').collect::<Vec<_>>().as_slice() {
            [source, target] => (*source, *target, false),
            [source, target, "ro"] => (*source, *target, true),
            _ => return Err(format!("bind {text}: accepted: SOURCE:TARGET, SOURCE:TARGET:ro")),
        };
        if source.is_empty() || !target.starts_with('/') {
            return Err(format!("bind {text}: the target must be an absolute path"));
        }
        Ok(Self { source: source.to_owned(), target: target.to_owned(), read_only })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Link {
    endpoints: [Endpoint; 2],
}

#[derive(Deserialize)]
#[serde(try_from = "String")]
struct Endpoint(End);

impl TryFrom<String> for Endpoint {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        // The longest name that the kernel gives an interface.
        match text.split_once(':') {
            Some((node, interface)) if !node.is_empty() && (1..=15).contains(&interface.len()) => {
                Ok(Self(End { node: node.to_owned(), interface: interface.to_owned() }))
            }
            _ => Err(format!("endpoint {text}: accepted: NODE:INTERFACE, the interface 1 to 15 characters")),
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.node, self.interface)
    }
}

impl Topology {
    /// Reads the text of a file that lies in `folder`; `variable` gives the value of `${NAME}`.
    ///
    /// # Errors
    /// It is not of the format, or holds something that is not in the subset: key and line are named.
    pub fn parse(text: &str, folder: &Path, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let file: File = serde_saphyr::from_str(&substitute(text, variable)?)?;
        let Graph { defaults, nodes, links } = file.topology;
        let complete = |(name, written): (String, Option<Written>)| {
            let node = complete(&defaults, written.unwrap_or_default(), folder);
            node.with_context(|| format!("node {name}")).map(|node| (name, node))
        };
        let nodes = nodes.into_iter().map(complete).collect::<Result<_>>()?;
        let links = links.into_iter().map(|link| link.endpoints.map(|end| end.0)).collect();
        let topology = Self { name: file.name, nodes, links };
        topology.check()?;
        Ok(topology)
    }

    fn check(&self) -> Result<()> {
        let mut ends: Vec<&End> = self.links.iter().flatten().collect();
        for (name, node) in &self.nodes {
            ensure!(!node.command.is_empty(), "node {name}: neither entrypoint nor cmd: what is it to run?");
            let Some(owner) = &node.joins else { continue };
            let has_own = self.nodes.get(owner).is_some_and(|owner| owner.joins.is_none());
            ensure!(has_own, "node {name}: network-mode container:{owner}: no such node with a namespace of its own");
            ensure!(!ends.iter().any(|end| end.node == *name), "node {name}: it joins {owner}, and so has no links");
        }
        for end in &ends {
            ensure!(self.nodes.contains_key(&end.node), "link {end}: there is no node {}", end.node);
        }
        ends.sort_by_key(|end| (&end.node, &end.interface));
        if let Some([twice, _]) = ends.windows(2).find_map(|pair| pair.first_chunk().filter(|[a, b]| a == b)) {
            bail!("link {twice}: this interface has two links");
        }
        Ok(())
    }
}

fn complete(defaults: &Written, node: Written, folder: &Path) -> Result<Node> {
    let joins = match node.network_mode.or_else(|| defaults.network_mode.clone()) {
        Some(NetworkMode::Own) => None,
        Some(NetworkMode::Of(owner)) => Some(owner),
        None => bail!("no network-mode, neither its own nor in the defaults: accepted: none, container:NODE"),
    };
    // An entrypoint of its own does not take the arguments of another's.
    let cmd = if node.entrypoint.is_some() { node.cmd } else { node.cmd.or_else(|| defaults.cmd.clone()) };
    let entrypoint = node.entrypoint.or_else(|| defaults.entrypoint.clone());
    let command = [entrypoint, cmd].into_iter().flatten().flat_map(|words| words.0).collect();
    let binds = defaults.binds.iter().cloned().chain(node.binds);
    let bind = |Mount { source, target, read_only }| {
        let source = folder.join(source);
        let source = source.canonicalize().with_context(|| format!("bind {}", source.display()))?;
        Ok(Bind { source, target, read_only })
    };
    let merged = |defaults: &BTreeMap<String, String>, own| defaults.clone().into_iter().chain(own).collect();
    Ok(Node {
        joins,
        command,
        env: merged(&defaults.env, node.env),
        sysctls: merged(&defaults.sysctls, node.sysctls),
        binds: binds.map(bind).collect::<Result<_>>()?,
        exec: defaults.exec.iter().cloned().chain(node.exec).map(|words| words.0).collect(),
    })
}

/// Replaces `${NAME}`, `${NAME:=otherwise}` and `${NAME:-otherwise}`; lines stay lines.
fn substitute(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String> {
    let mut parts = text.split("${");
    let mut replaced = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let line = replaced.lines().count();
        let (inner, rest) = part.split_once('}').with_context(|| format!("line {line}: ${{ without }}"))?;
        let (name, otherwise) = match inner.split_once(":=").or_else(|| inner.split_once(":-")) {
            Some((name, otherwise)) => (name, Some(otherwise.to_owned())),
            None => (inner, None),
        };
        let value = variable(name).filter(|value| !value.is_empty()).or(otherwise);
        replaced += &value.with_context(|| format!("line {line}: ${{{name}}} is not set"))?;
        replaced += rest;
    }
    Ok(replaced)
}

/// Splits a command as a shell would, without a shell: spaces, quotes, backslashes.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (Some(open), _) if character == open => quote = None,
            (None | Some('"'), '\\') => {
                let next = characters.next().ok_or_else(|| format!("{text}: ends in a backslash"))?;
                word.get_or_insert_default().push(next);
            }
            (None, ' ' | '\t' | '\n') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    if quote.is_some() {
        return Err(format!("{text}: a quote is not closed"));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "\
name: small
topology:
  defaults:
    kind: linux
    network-mode: none
    cmd: sleep infinity
    sysctls:
      a: \"1\"
  nodes:
    pod:
      cap-add: [NET_ADMIN]
      exec:
        - ip addr add 192.0.2.1/24 dev net1
        - sh -c 'echo \"two words\"'
    lb:
      image: ${IMAGE:=martlet}
      network-mode: container:pod
      entrypoint: /usr/bin/martlet
      cmd: lb
      sysctls:
        a: \"2\"
    client:
  links:
    - endpoints: [\"pod:net1\", \"client:eth0\"]
";

    fn parse(text: &str) -> Result<Topology> {
        Topology::parse(text, Path::new("/"), |_| None)
    }

    fn refusal(from: &str, to: &str) -> String {
        assert!(SMALL.contains(from));
        format!("{:#}", parse(&SMALL.replace(from, to)).unwrap_err())
    }

    #[test]
    fn a_node_is_what_it_says_over_what_the_defaults_say() {
        let topology = parse(SMALL).unwrap();
        let lb = &topology.nodes["lb"];
        assert_eq!((lb.joins.as_deref(), lb.sysctls["a"].as_str()), (Some("pod"), "2"));
        assert_eq!(lb.command, ["/usr/bin/martlet", "lb"]);
        assert_eq!(topology.nodes["client"].command, ["sleep", "infinity"]);
        assert_eq!(topology.nodes["pod"].exec[1], ["sh", "-c", "echo \"two words\""]);
        assert_eq!(topology.links[0][1].to_string(), "client:eth0");
    }

    #[test]
    fn what_is_not_in_the_subset_is_named_with_its_line() {
        let said = refusal("      cap-add: [NET_ADMIN]", "      ports: [80]");
        assert!(said.contains("ports") && said.contains("line 11"), "{said}");
        let said = refusal("kind: linux", "kind: bridge");
        assert!(said.contains("bridge") && said.contains("line 4"), "{said}");
        let said = refusal("network-mode: container:pod", "network-mode: host");
        assert!(said.contains("network-mode host") && said.contains("line 17"), "{said}");
        let said = refusal("      cap-add: [NET_ADMIN]", "      privileged: true");
        assert!(said.contains("privileged: accepted: false"), "{said}");
        let said = refusal("${IMAGE:=martlet}", "${IMAGE}");
        assert!(said.contains("line 16") && said.contains("IMAGE"), "{said}");
        let said = refusal("sh -c 'echo", "sh -c 'echo'");
        assert!(said.contains("a quote is not closed"), "{said}");
    }

    #[test]
    fn what_does_not_fit_together_is_named() {
        assert!(refusal("client:eth0", "nobody:eth0").contains("there is no node nobody"));
        assert!(refusal("client:eth0", "pod:net1").contains("two links"));
        assert!(refusal("client:eth0", "lb:eth0").contains("has no links"));
        assert!(refusal("container:pod", "container:lb").contains("no such node"));
        assert!(refusal("    cmd: sleep infinity\n", "").contains("what is it to run"));
        assert!(refusal("net1\", \"client:eth0", "net1\", \"client:a-name-that-is-too-long").contains("15 characters"));
    }
}
