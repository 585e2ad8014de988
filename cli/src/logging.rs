//! How the log looks: one line an event, to stderr.

use std::io;

use anyhow::Context as _;
use clap::ValueEnum;
use tracing_subscriber::EnvFilter;

/// Flags of every subcommand.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What is logged: error, warn, info, debug, trace, or a filter such as `info,martlet_bgp=debug`.
    #[arg(long, global = true, env = "NFE_LOG_LEVEL", default_value = "info", value_name = "FILTER")]
    log_level: String,
    /// How a line looks.
    #[arg(long, global = true, env = "MARTLET_LOG_FORMAT", value_enum, default_value_t = Format::Text)]
    log_format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// For a human.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging.
///
/// # Errors
/// When the filter makes no sense.
pub fn start(args: &Args) -> anyhow::Result<()> {
    // The frontend's variable is in capitals (`DEBUG`).
    let filter = EnvFilter::builder()
        .parse(args.log_level.to_lowercase())
        .with_context(|| format!("--log-level {}: accepted: error, warn, info, debug, trace", args.log_level))?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    match args.log_format {
        Format::Text => lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).init(),
        Format::Json => lines.json().flatten_event(true).init(),
    }
    Ok(())
}
