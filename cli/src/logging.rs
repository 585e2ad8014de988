//! How the log looks: one line an event, to stderr; and what of it is shown, which can be changed at run time.

use std::io;

use clap::ValueEnum;
use martlet_router::log::Detail;
use tracing_subscriber::EnvFilter;

/// What a filter may name without a target.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

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

/// Starts logging; signals and `martlet log` may change its level from then on.
///
/// # Errors
/// When the filter makes no sense.
pub fn start(args: &Args) -> anyhow::Result<()> {
    // The frontend's variable is in capitals (`DEBUG`).
    let filter = args.log_level.to_lowercase();
    let parsed = parse(&filter).map_err(|error| anyhow::anyhow!("--log-level {}: {error}", args.log_level))?;
    let lines = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(io::stderr).with_target(false);
    let detail = match args.log_format {
        Format::Text => {
            let lines = lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).with_filter_reloading();
            let handle = lines.reload_handle();
            lines.init();
            Detail::new(&filter, move |filter| handle.reload(parse(filter)?).map_err(|error| error.to_string()))
        }
        Format::Json => {
            let lines = lines.json().flatten_event(true).with_filter_reloading();
            let handle = lines.reload_handle();
            lines.init();
            Detail::new(&filter, move |filter| handle.reload(parse(filter)?).map_err(|error| error.to_string()))
        }
    };
    martlet_router::log::install(detail);
    Ok(())
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    let accepted = "accepted: error, warn, info, debug, trace, off, or target=level";
    // A bare word that is no level would be taken for a target, and everything else fall silent.
    let is_known = |part: &str| part.contains(['=', '[']) || LEVELS.contains(&part);
    if let Some(part) = filter.split(',').map(str::trim).find(|part| !part.is_empty() && !is_known(part)) {
        return Err(format!("{part} is no level; {accepted}"));
    }
    EnvFilter::builder().parse(filter).map_err(|error| format!("{error}; {accepted}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        for good in ["info", "off", "info,martlet_bgp=debug", "martlet_bgp=trace"] {
            assert!(parse(good).is_ok(), "{good}");
        }
        for bad in ["loud", "info,loud", "martlet_bgp=loud"] {
            assert!(parse(bad).unwrap_err().contains("accepted: error"), "{bad}");
        }
    }
}
