//! What the router's users wait for (`speed`), and how soon the gateway hears that an endpoint becomes ready or that the load
//! balancer dies: the demo's steps 3 and 10, again and again.

mod bird;
mod counter;
mod speed;
mod storm;

use std::time::SystemTime;

use anyhow::{Context, Result};

pub use storm::{Beside, beside, repaired_beside};

use super::{Options, Row};
use crate::demo::announce::{announced, sessions_up, vips_at_gateway, withdrawn};
use crate::demo::folder::Endpoint;
use crate::demo::topology::{World, find_martlet, workspace};
use crate::lab::End;

/// Milliseconds below which both should be.
const GOAL_MS: f64 = 100.0;

/// Measures all of it.
///
/// # Errors
/// Something cannot be measured.
pub fn measure(options: &Options) -> Result<Vec<Row>> {
    let runs = if options.quick { 3 } else { 15 };
    let mut world = World::build(&workspace().join("deploy/demo"), &find_martlet()?, End::Remove)?;
    let (mut ready, mut killed) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        let (to_update, to_withdrawal) = one(&mut world).with_context(|| {
            world.lab.mark_failed();
            format!("run {run} of {runs}\n{}", world.lab.tails(10))
        })?;
        ready.push(to_update);
        killed.push(to_withdrawal);
    }
    let mut rows = speed::rows(options.quick)?;
    rows.extend([
        Row::below("router: endpoint file changed -> UPDATE", "ms", GOAL_MS, ready),
        Row::below("router: lb killed -> withdrawal", "ms", GOAL_MS, killed),
    ]);
    Ok(rows)
}

/// One run with a router of its own, so that no VIP is held back for flapping. Of both families, the later one.
fn one(world: &mut World) -> Result<(f64, f64)> {
    world.folder.set(&[Endpoint::NotReady; 3])?;
    world.start_lb()?;
    world.start_router()?;
    sessions_up(world)?;
    let start = SystemTime::now();
    world.folder.set(&[Endpoint::Ready; 3])?;
    let to_update = announced(world, start)?;
    vips_at_gateway(world, true)?;
    let lb = world.lb.take().context("the lb does not run")?;
    let start = SystemTime::now();
    world.kill(&lb)?;
    let to_withdrawal = withdrawn(world, start)?;
    vips_at_gateway(world, false)?;
    let router = world.router.take().context("the router does not run")?;
    world.kill(&router)?;
    let later = |times: Vec<std::time::Duration>| times.into_iter().max().unwrap_or_default().as_secs_f64() * 1000.0;
    Ok((later(to_update), later(to_withdrawal)))
}
