//! A control socket: one JSON line asks, one JSON line answers.
//!
//! Mode 0660; only the same user and root are answered. It knows neither what can be asked nor how answers are shown.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tracing::{debug, warn};

/// The longest request, octets.
const MAX_REQUEST: u64 = 4096;
/// How long an asker may take, and how long an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Listens on `path` until the runtime ends. `answer` gets a request, or in words why it was not understood; `who` is named
/// when somebody listens there already.
///
/// # Errors
/// When the socket cannot be made: its folder is missing or not ours.
pub fn serve<Q, A, F>(
    path: &Path,
    who: &str,
    answer: impl Fn(Result<Q, String>) -> F + Clone + Send + Sync + 'static,
) -> io::Result<()>
where
    Q: DeserializeOwned + Send + 'static,
    A: Serialize + Send + 'static,
    F: Future<Output = A> + Send + 'static,
{
    // What a killed process left is in the way of a new one; what a living one listens on is not ours to take.
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, format!("another {who} answers there")));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    let own_uid = std::fs::metadata(path)?.uid();
    let socket = Removed(path.to_owned());
    tokio::spawn(async move {
        let _socket = socket;
        loop {
            match listener.accept().await {
                Ok((stream, _)) if is_friend(&stream, own_uid) => {
                    drop(tokio::spawn(converse(stream, answer.clone())));
                }
                Ok(_) => debug!("a stranger on the control socket was sent away"),
                Err(error) => {
                    warn!(%error, "the control socket does not accept");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    });
    Ok(())
}

/// Takes the socket's file along when it goes.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Whether the other end is root or the user that owns the socket.
fn is_friend(stream: &UnixStream, own_uid: u32) -> bool {
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own_uid)
}

async fn converse<Q, A, F>(stream: UnixStream, answer: impl Fn(Result<Q, String>) -> F)
where
    Q: DeserializeOwned,
    A: Serialize,
    F: Future<Output = A>,
{
    let (read, mut write) = stream.into_split();
    let mut reader = BufReader::new(read);
    loop {
        let mut line = String::new();
        let mut limited = (&mut reader).take(MAX_REQUEST);
        let read = tokio::time::timeout(PATIENCE, limited.read_line(&mut line)).await;
        if !matches!(read, Ok(Ok(count)) if count > 0) {
            return;
        }
        let request = serde_json::from_str(&line).map_err(|error| format!("not understood: {error}"));
        let Ok(mut text) = serde_json::to_vec(&answer(request).await) else { return };
        text.push(b'\n');
        if !matches!(tokio::time::timeout(PATIENCE, write.write_all(&text)).await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Asks the process whose control socket is `path`.
///
/// # Errors
/// When nobody answers there, or what is answered is not understood.
pub async fn ask<A: DeserializeOwned>(path: &Path, request: &impl Serialize) -> io::Result<A> {
    let talk = async {
        let mut stream = UnixStream::connect(path).await?;
        let mut text = serde_json::to_vec(request)?;
        text.push(b'\n');
        stream.write_all(&text).await?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await?;
        if line.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "not answered: only its own user and root are",
            ));
        }
        Ok(serde_json::from_str(&line)?)
    };
    tokio::time::timeout(PATIENCE, talk).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with the double.
    fn start(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("martlet-{name}-{}.sock", std::process::id()));
        serve(&path, "doubler", double).unwrap();
        path
    }

    async fn double(request: Result<u32, String>) -> Result<u32, String> {
        request.map(|number| number * 2)
    }

    #[tokio::test]
    async fn a_request_has_its_answer() {
        let path = start("answer");
        assert_eq!(ask::<Result<u32, String>>(&path, &21).await.unwrap(), Ok(42));
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        std::fs::remove_file(&path).unwrap();
    }

    /// Asks as `user`: what was answered. Perl is part of the base of Debian, and may be run by anybody.
    async fn ask_as(user: u32, path: PathBuf) -> String {
        use std::os::unix::process::CommandExt;
        const SCRIPT: &str = r#"$SIG{PIPE} = "IGNORE";
            my $s = IO::Socket::UNIX->new($ARGV[0]) or die "cannot connect: $!";
            syswrite $s, "4\n"; my $line = readline $s; print $line // """#;
        let ask = move || {
            let mut perl = std::process::Command::new("/usr/bin/perl");
            let output = perl.args(["-MIO::Socket::UNIX", "-e", SCRIPT]).arg(path).current_dir("/").uid(user).output();
            let output = output.expect("this test needs root and perl");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        tokio::task::spawn_blocking(ask).await.unwrap()
    }

    #[tokio::test]
    async fn another_user_is_sent_away_without_an_answer() {
        let path = start("stranger");
        // The mode alone would keep it out: credentials must, too.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        assert_eq!(ask_as(0, path.clone()).await, "{\"Ok\":8}\n");
        assert_eq!(ask_as(65534, path.clone()).await, "");
        std::fs::remove_file(&path).unwrap();
    }

    #[tokio::test]
    async fn nonsense_is_answered_and_a_living_socket_is_not_taken_over() {
        let path = start("nonsense");
        let mut stream = UnixStream::connect(&path).await.unwrap();
        stream.write_all(b"{\"dance\":1}\n").await.unwrap();
        let mut line = String::new();
        BufReader::new(&mut stream).read_line(&mut line).await.unwrap();
        assert!(line.starts_with("{\"Err\":\"not understood"), "{line}");
        let refused = serve(&path, "doubler", double).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);
        assert_eq!(refused.to_string(), "another doubler answers there");
        std::fs::remove_file(&path).unwrap();
    }

    #[tokio::test]
    async fn what_a_killed_process_left_is_in_nobodys_way() {
        let path = std::env::temp_dir().join(format!("martlet-left-{}.sock", std::process::id()));
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        serve(&path, "doubler", double).unwrap();
        assert_eq!(ask::<Result<u32, String>>(&path, &1).await.unwrap(), Ok(2));
        std::fs::remove_file(&path).unwrap();
    }
}
