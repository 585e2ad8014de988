//! The demo: the main job on real input, told in ten steps, each observed from outside.
//!
//! `topology` builds the stage, `folder` edits the objects as a user would, `announce`, `traffic` and `fault` are the steps, `predict`
//! the load balancer's own arithmetic.

pub(crate) mod announce;
mod fault;
pub mod folder;
pub mod predict;
pub mod soak;
pub mod topology;
mod traffic;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};

use crate::lab::End;
use crate::peer::Gateway;
use crate::preflight;
use topology::World;

/// How the demo is run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Leave everything up at the end, and print the commands to look around.
    #[arg(long)]
    pub keep: bool,
    /// The objects and FRR's configuration.
    #[arg(long, default_value_os_t = topology::workspace().join("deploy/demo"))]
    pub folder: PathBuf,
    /// Wait so long at the end of step 1 to 9, milliseconds: to look around in between.
    #[arg(long, default_value_t = 0)]
    pub pause_ms: u64,
}

/// The demo as it runs.
struct Demo {
    world: World,
}

type Step = fn(&mut Demo) -> Result<String>;

const STEPS: [(&str, Step); 10] = [
    ("BGP Established, BFD Up, both families", announce::sessions),
    ("no ready endpoint: no VIP at the gateway", announce::silence),
    ("endpoints ready: VIPs at the gateway", announce::ready),
    ("300 TCP, 300 UDP a family, ping: none lost", traffic::all_answered),
    ("one application leaves: its flows move", traffic::one_leaves),
    ("the last leaves, all come back: VIPs too", announce::withdrawn_and_back),
    ("default route learned: VIP egress uses it", fault::default_route),
    ("the gateway's link is cut: no leak; mended", fault::cut),
    ("SIGTERM: withdrawn before the session ends", fault::terminated),
    ("kill -9 of the lb: VIPs withdrawn at once", fault::lb_killed),
];

/// Runs the demo.
///
/// # Errors
/// A prerequisite is missing, or a step was not observed.
pub fn run(options: &Options) -> Result<()> {
    preflight::check()?;
    let martlet = topology::find_martlet()?;
    let end = if options.keep { End::Keep } else { End::Remove };
    let start = Instant::now();
    let world = World::build(&options.folder, &martlet, end)?;
    println!("client -- gateway ({}) -- load balancer (martlet router, lb) -- 3 applications", world.frr.title());
    let mut demo = Demo { world };
    for (number, (title, step)) in (1..).zip(STEPS) {
        match step(&mut demo) {
            Ok(seen) => println!("{number:>3}  {title:<43} {seen}"),
            Err(error) => {
                demo.world.lab.mark_failed();
                println!("{number:>3}  {title:<43} FAILED: {error:#}");
                println!("{}", demo.world.lab.tails(15));
                if options.keep {
                    print!("{}", demo.look());
                } else {
                    println!("(with --keep everything is left up to look around)");
                }
                return Err(anyhow!("step {number} was not observed: {title}"));
            }
        }
        std::thread::sleep(Duration::from_millis(options.pause_ms));
    }
    println!("all ten steps observed from outside in {:.1} s", start.elapsed().as_secs_f64());
    if options.keep {
        // What steps 9 and 10 ended is started again, to have something to look at.
        demo.start().context("start again, to look around")?;
        print!("{}", demo.look());
    }
    Ok(())
}

impl Demo {
    /// Starts the load balancer and the router, if they do not run.
    fn start(&mut self) -> Result<()> {
        self.world.start_lb()?;
        self.world.start_router()
    }

    fn look(&self) -> String {
        let world = &self.world;
        let pod = world.pod.name();
        let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("martlet-lab"));
        let mut lines = vec![
            format!("The lab {} is up. Logs, objects, captures: {}", world.lab.name(), world.lab.dir().display()),
            format!("  edit {}/endpoints-v4.yaml   # router and lb follow", world.folder.path().display()),
        ];
        lines.extend(world.frr.look().into_iter().map(|command| format!("  {command}")));
        lines.push(format!(
            "  ip -n {pod} rule; ip -n {pod} route show table 4096; ip netns exec {pod} nft list ruleset"
        ));
        lines.push(format!(
            "  ip netns exec {} timeout 1 bash -c 'cat </dev/tcp/20.0.0.1/4000'   # which application answers?",
            world.client.name()
        ));
        lines.push(format!(
            "  ip -n {} link set {} down   # cut the gateway",
            world.fabric.name(),
            topology::GATEWAY_PORT
        ));
        lines.push(format!("  {} clean {}   # removes it", own.display(), world.lab.name()));
        lines.join("\n") + "\n"
    }
}

/// `12.3 ms`, or `1.23 s`.
fn show(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{:.1} ms", time.as_secs_f64() * 1000.0)
    } else {
        format!("{:.2} s", time.as_secs_f64())
    }
}
