//! A real Kubernetes control plane in a lab: etcd, kube-apiserver and kube-controller-manager, without nodes.
//!
//! They run in one network namespace of the lab; [`Cluster::inside`] runs a closure on a thread that can reach them. The primary
//! network of the Pods is a bridge in that namespace, on whose address the API server listens. The [`crate::Lab`] ends all of
//! them. The programs come from `KUBEBUILDER_ASSETS` or are built by `deploy/lab/kubernetes/build.sh`. What applies objects is in
//! [`objects`]; what plays the kubelet is in [`agent`]; what makes the way to the server bad is in [`proxy`].

pub mod agent;
pub mod objects;
pub mod proxy;

use std::fmt::Write as _;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Namespace as KubeNamespace;
use kube::{Api, Client, Config};
use serde_json::Value;

use crate::namespace::Namespace;
use crate::process::Process;
use crate::{Lab, Signal};

/// The user that may do everything.
pub const ADMIN: &str = "admin";
/// How long a cold API server may take on a busy machine.
const START_LIMIT: Duration = Duration::from_mins(2);
/// The bridge of the Pods' primary network, its address (which is that of the API server too), and its length.
const PRIMARY: &str = "cbr0";
/// Where Pods find the API server.
pub const SERVER: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 244, 0, 1);
const PRIMARY_LENGTH: u8 = 16;
/// Ports in the namespace of the cluster; nothing else lives there.
const ETCD_PORT: u16 = 2379;
const ETCD_PEER_PORT: u16 = 2380;
/// The port of the API server.
pub const API_PORT: u16 = 6443;
const MANAGER_PORT: u16 = 10257;

/// What runs of `kube-controller-manager`: what turns a Deployment into Pods, and what cleans up.
const CONTROLLERS: &str = "deployment-controller,replicaset-controller,garbage-collector-controller,namespace-controller,\
                           disruption-controller,endpointslice-controller";

/// A control plane. See the module.
pub struct Cluster<'lab> {
    lab: &'lab Lab,
    namespace: Namespace,
    programs: Programs,
    dir: PathBuf,
    etcd: Process,
    server: Mutex<Process>,
    /// Asks the thread that waits in [`Cluster::inside`] to start the server: a process of a lab ends with the thread that
    /// started it.
    ask: Mutex<Option<mpsc::Sender<mpsc::Sender<Result<()>>>>>,
    manager: Option<Process>,
}

/// Where the programs are.
#[derive(Clone, Debug)]
struct Programs {
    assets: Option<PathBuf>,
    built: PathBuf,
}

impl Programs {
    /// Builds what is missing; minutes, the first time.
    fn find() -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/lab/kubernetes/build.sh");
        let output = Command::new(&script)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("start {}", script.display()))?;
        if !output.status.success() {
            bail!("{} failed: there is no Kubernetes to test with", script.display());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        let built = text.lines().last().context("build.sh named no folder")?.into();
        Ok(Self { assets: std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from), built })
    }

    fn path(&self, program: &str) -> PathBuf {
        let asset = self.assets.as_ref().map(|assets| assets.join(program)).filter(|path| path.exists());
        asset.unwrap_or_else(|| self.built.join(program))
    }
}

impl<'lab> Cluster<'lab> {
    /// Starts etcd and the API server, and waits until it answers. With the CRDs of the Gateway API, of ours, and of the
    /// `NetworkAttachmentDefinition`.
    ///
    /// # Errors
    /// A program cannot be built or started, or the API server does not become ready.
    pub fn start(lab: &'lab Lab) -> Result<Self> {
        let programs = Programs::find()?;
        let namespace = lab.namespace("kube")?;
        namespace.bridge(PRIMARY, &[])?;
        namespace.ip(&format!("addr add {SERVER}/{PRIMARY_LENGTH} dev {PRIMARY}"))?;
        let dir = lab.dir().join("kube");
        fs::create_dir(&dir)?;
        // Static tokens: the admin, and one user for each name that a test asks a client for.
        let mut tokens = format!("{ADMIN},{ADMIN},{ADMIN},\"system:masters\"\n");
        for user in USERS {
            let _ = writeln!(tokens, "{user},{user},{user},\"\"");
        }
        fs::write(dir.join("tokens.csv"), tokens)?;
        run(Command::new("openssl").args(["genrsa", "-out"]).arg(dir.join("accounts.key")).arg("2048"))?;
        let etcd = start_etcd(lab, &namespace, &programs, &dir)?;
        let server = start_server(lab, &namespace, &programs, &dir)?;
        let cluster = Self {
            lab,
            namespace,
            programs,
            dir,
            etcd,
            server: Mutex::new(server),
            ask: Mutex::default(),
            manager: None,
        };
        fs::write(cluster.kubeconfig(), cluster.kubeconfig_of(ADMIN))?;
        cluster.inside(async |cluster| cluster.ready().await?.install().await)?;
        Ok(cluster)
    }

    /// Starts `kube-controller-manager`: Deployments become Pods, owned objects vanish with their owner. It ends with the thread
    /// that calls this.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_manager(&mut self) -> Result<()> {
        let mut command = Command::new(self.programs.path("kube-controller-manager"));
        command
            .arg(format!("--kubeconfig={}", self.kubeconfig().display()))
            .arg(format!("--controllers={CONTROLLERS}"))
            .args(["--leader-elect=false", "--bind-address=127.0.0.1", "--authentication-skip-lookup"])
            .args(["--use-service-account-credentials=false", "--concurrent-deployment-syncs=5"])
            .args(["--kube-api-qps=200", "--kube-api-burst=400"])
            .arg(format!("--secure-port={MANAGER_PORT}"))
            .arg(format!("--cert-dir={}", self.dir.join("manager").display()));
        self.manager = Some(self.lab.spawn("kube-controller-manager", Some(&self.namespace), command)?);
        Ok(())
    }

    /// Runs `work` to its end on a runtime whose threads are in the namespace of the cluster.
    ///
    /// # Errors
    /// What `work` returns, or the namespace cannot be entered.
    pub fn inside<T: Send>(&self, work: impl AsyncFnOnce(&Self) -> Result<T> + Send) -> Result<T> {
        let (ask, asked) = mpsc::channel::<mpsc::Sender<Result<()>>>();
        *lock(&self.ask) = Some(ask);
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| {
                let result = self.namespace.inside(|| {
                    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
                    runtime.block_on(work(self))
                });
                *lock(&self.ask) = None;
                result?
            });
            for answer in asked {
                let started = start_server(self.lab, &self.namespace, &self.programs, &self.dir);
                let _ = answer.send(started.map(|server| *lock(&self.server) = server));
            }
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// The network namespace in which it listens.
    pub const fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Gives a Pod its interface `eth0` on the primary network, with the default route. Returns its address.
    ///
    /// # Errors
    /// `ip` refuses.
    pub fn attach(&self, pod: &Namespace, role: &str, number: u16) -> Result<std::net::Ipv4Addr> {
        // 0 and 1 are the network and the bridge.
        let address = std::net::Ipv4Addr::from_bits(SERVER.to_bits() + 1 + u32::from(number));
        let port = format!("{role}-eth");
        self.lab.link((pod, "eth0"), (&self.namespace, &port))?;
        self.namespace.ip(&format!("link set {port} master {PRIMARY}"))?;
        pod.ip(&format!("addr add {address}/{PRIMARY_LENGTH} dev eth0\nroute add default via {SERVER}"))?;
        Ok(address)
    }

    /// The lab it lives in.
    pub const fn lab(&self) -> &'lab Lab {
        self.lab
    }

    /// A file that lets the admin in.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("admin.kubeconfig")
    }

    /// The text of a kubeconfig for one of [`USERS`], or [`ADMIN`].
    pub fn kubeconfig_of(&self, user: &str) -> String {
        let certificate = self.certificate();
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
             clusters:\n- name: lab\n  cluster: {{server: \"https://{SERVER}:{API_PORT}\", certificate-authority: {}}}\n\
             users:\n- name: lab\n  user: {{token: {user}}}\n\
             contexts:\n- name: lab\n  context: {{cluster: lab, user: lab}}\n",
            certificate.display()
        )
    }

    /// What clients trust.
    pub fn certificate(&self) -> PathBuf {
        self.dir.join("server/apiserver.crt")
    }

    /// A client of the admin; to be made and used inside.
    ///
    /// # Errors
    /// The certificate of the server cannot be read.
    pub fn client(&self) -> Result<Client> {
        self.client_of(ADMIN)
    }

    /// A client of one of [`USERS`]; to be made and used inside.
    ///
    /// # Errors
    /// The certificate of the server cannot be read.
    pub fn client_of(&self, user: &str) -> Result<Client> {
        self.client_through(user, API_PORT)
    }

    /// As [`Self::client_of`], by another port: that of a [`proxy::Proxy`].
    ///
    /// # Errors
    /// The certificate of the server cannot be read.
    pub fn client_through(&self, user: &str, port: u16) -> Result<Client> {
        let mut config = Config::new(format!("https://{SERVER}:{port}").parse()?);
        config.root_cert_file = Some(self.certificate());
        config.auth_info.token = Some(user.to_owned().into());
        Ok(Client::try_from(config)?)
    }

    /// Runs `kubectl` as the admin.
    ///
    /// # Errors
    /// It cannot be started, or fails.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let program = self.programs.path("kubectl");
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig().display());
        self.namespace.output(&program.to_string_lossy(), &[&[kubeconfig.as_str()], arguments].concat())
    }

    /// Where the CRDs of the Gateway API are.
    fn gateway_api(&self) -> PathBuf {
        self.programs.built.join("gateway-api")
    }

    /// Kills the API server: connections break, nothing listens.
    ///
    /// # Errors
    /// It does not die.
    pub fn kill_server(&self) -> Result<()> {
        let server = lock(&self.server).clone();
        server.signal(Signal::Kill)?;
        server.wait(Duration::from_secs(10)).map(drop)
    }

    /// Starts the API server again, on what etcd holds; to be used inside, and followed by [`Self::ready`].
    ///
    /// # Errors
    /// It cannot be started.
    pub fn restart_server(&self) -> Result<()> {
        let ask = lock(&self.ask).clone().context("not inside")?;
        let (answer, answered) = mpsc::channel();
        ask.send(answer)?;
        answered.recv()?
    }

    /// Lets etcd forget the past: who asks for a version of it is told 410 Gone. To be called while the server is down, so that
    /// nothing is written in between.
    ///
    /// # Errors
    /// etcd does not answer.
    pub fn compact(&self) -> Result<()> {
        let revision: Value = serde_json::from_str(&self.ask_etcd("range", r#"{"key":"AA=="}"#)?)?;
        let revision = revision["header"]["revision"].as_str().context("etcd tells no revision")?.to_owned();
        self.ask_etcd("compaction", &format!(r#"{{"revision":"{revision}","physical":true}}"#)).map(drop)
    }

    /// One request to the JSON gateway of etcd.
    fn ask_etcd(&self, what: &str, body: &str) -> Result<String> {
        self.namespace.inside(|| {
            let mut stream = TcpStream::connect(("127.0.0.1", ETCD_PORT))?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            let length = body.len();
            write!(stream, "POST /v3/kv/{what} HTTP/1.0\r\nContent-Length: {length}\r\n\r\n{body}")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            let (head, body) = answer.split_once("\r\n\r\n").context("etcd: no answer")?;
            if !head.starts_with("HTTP/1.0 200") && !head.starts_with("HTTP/1.1 200") {
                bail!("etcd: {what}: {answer}");
            }
            Ok(body.to_owned())
        })?
    }

    /// Waits until the API server answers; to be used inside.
    ///
    /// # Errors
    /// It ended, or does not answer in time.
    pub async fn ready(&self) -> Result<&Self> {
        let start = Instant::now();
        loop {
            let seen = match self.client() {
                Ok(client) => match Api::<KubeNamespace>::all(client).get("default").await {
                    Ok(_) => return Ok(self),
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            };
            let server = lock(&self.server).clone();
            for process in [&self.etcd, &server] {
                if let Some(status) = process.ended() {
                    bail!("{} ended ({status}):\n{}", process.name(), process.tail(20));
                }
            }
            if start.elapsed() > START_LIMIT {
                bail!("the API server is not ready after {START_LIMIT:?}: {seen}\n{}", server.tail(20));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Users without any right of their own: tests bind Roles to them.
pub const USERS: &[&str] = &["controller", "router", "lb", "agent", "nobody"];

fn start_etcd(lab: &Lab, namespace: &Namespace, programs: &Programs, dir: &Path) -> Result<Process> {
    let client = format!("http://127.0.0.1:{ETCD_PORT}");
    let peer = format!("http://127.0.0.1:{ETCD_PEER_PORT}");
    let mut command = Command::new(programs.path("etcd"));
    command
        .arg(format!("--data-dir={}", dir.join("etcd").display()))
        .args(["--name=lab", "--unsafe-no-fsync", "--log-level=warn"])
        .arg(format!("--listen-client-urls={client}"))
        .arg(format!("--advertise-client-urls={client}"))
        .arg(format!("--listen-peer-urls={peer}"))
        .arg(format!("--initial-advertise-peer-urls={peer}"))
        .arg(format!("--initial-cluster=lab={peer}"));
    lab.spawn("etcd", Some(namespace), command)
}

fn start_server(lab: &Lab, namespace: &Namespace, programs: &Programs, dir: &Path) -> Result<Process> {
    let key = dir.join("accounts.key");
    let mut command = Command::new(programs.path("kube-apiserver"));
    command
        .arg(format!("--etcd-servers=http://127.0.0.1:{ETCD_PORT}"))
        .arg(format!("--secure-port={API_PORT}"))
        .args(["--bind-address=0.0.0.0", "--service-cluster-ip-range=10.96.0.0/16"])
        .arg(format!("--advertise-address={SERVER}"))
        .arg(format!("--cert-dir={}", dir.join("server").display()))
        .arg("--service-account-issuer=https://kubernetes.default.svc")
        .arg(format!("--service-account-signing-key-file={}", key.display()))
        .arg(format!("--service-account-key-file={}", key.display()))
        .arg(format!("--token-auth-file={}", dir.join("tokens.csv").display()))
        // Pods name no ServiceAccount here unless they need one: the agent gives those that do their credentials.
        .args(["--authorization-mode=RBAC", "--disable-admission-plugins=ServiceAccount"])
        .args(["--allow-privileged", "--endpoint-reconciler-type=none", "--profiling=false"]);
    lab.spawn("kube-apiserver", Some(namespace), command)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
