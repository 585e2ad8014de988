//! The router's end of the socket to the load balancer: its word comes in, the external connectivity goes out.
//!
//! A task of its own connects, every 50 ms while nobody listens, and keeps the last word in a watch. End of file, a bad
//! line or three seconds of silence: nothing is ready. It does not judge what is said (see `gate`).

use std::io;
use std::path::{Path, PathBuf};

use martlet_api::readiness::{Connectivity, Families, HEARTBEAT, MAX_LINE, RETRY, Readiness as Said, SILENCE, VERSION};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::driver::Readiness;
use crate::gate::Lb;

/// The client of a load balancer's socket.
#[derive(Debug)]
pub struct LbClient {
    lb: watch::Receiver<Lb>,
    connectivity: watch::Sender<Families>,
}

impl LbClient {
    /// A client of the load balancer at `url` (`unix:///path`); empty: there is none, and nothing is gated. To be called in
    /// a tokio runtime.
    ///
    /// # Errors
    /// When `url` is of another kind.
    pub fn new(url: &str) -> Result<Self, String> {
        let (connectivity, told) = watch::channel(Families::default());
        let (sender, lb) = watch::channel(Lb::unknown());
        if url.is_empty() {
            sender.send_replace(Lb::Ungated);
            // Kept alive, so that the watch only ever changes this once.
            tokio::spawn(async move {
                let _told = told;
                sender.closed().await;
            });
        } else {
            let path = url.strip_prefix("unix://").filter(|path| path.starts_with('/'));
            let path = path.ok_or_else(|| format!("{url:?} is no unix:///path of a load balancer's socket"))?;
            tokio::spawn(talk(PathBuf::from(path), sender, told));
        }
        let mut client = Self { lb, connectivity };
        client.lb.mark_changed();
        Ok(client)
    }
}

impl Readiness for LbClient {
    async fn next(&mut self) -> Lb {
        if self.lb.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.lb.borrow_and_update().clone()
    }

    fn tell(&mut self, connectivity: Families) {
        self.connectivity.send_replace(connectivity);
    }
}

fn say(lb: &watch::Sender<Lb>, word: Lb) {
    lb.send_if_modified(|last| {
        let changed = *last != word;
        *last = word;
        changed
    });
}

/// Connects for ever; ends when nobody listens any more.
async fn talk(path: PathBuf, lb: watch::Sender<Lb>, mut connectivity: watch::Receiver<Families>) {
    while !lb.is_closed() {
        let why = match UnixStream::connect(&path).await {
            Ok(stream) => converse(stream, &lb, &mut connectivity).await,
            Err(error) => unreachable_words(&path, &error),
        };
        say(&lb, Lb::Silent(why.into()));
        tokio::time::sleep(RETRY).await;
    }
}

fn unreachable_words(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("there is no socket {path}: is the load balancer running?"),
        io::ErrorKind::ConnectionRefused => format!("nobody listens on {path}"),
        io::ErrorKind::PermissionDenied => format!("{path} may not be opened: the same user or group must own it"),
        _ => format!("{path}: {error}"),
    }
}

/// One connection, to its end; why it ended.
async fn converse(stream: UnixStream, lb: &watch::Sender<Lb>, connectivity: &mut watch::Receiver<Families>) -> String {
    let (read, write) = stream.into_split();
    tokio::select! {
        biased;
        why = listen(BufReader::new(read), lb) => why,
        why = speak(write, connectivity) => why,
    }
}

async fn listen(mut reader: BufReader<OwnedReadHalf>, lb: &watch::Sender<Lb>) -> String {
    let mut line = Vec::new();
    let mut silent_at = Instant::now() + SILENCE;
    loop {
        // What was read of a line stays in `line` when the time is over.
        match timeout_at(silent_at, read_line(&mut reader, &mut line)).await {
            Err(_) => {
                let text = format!("no word for {} s: it hangs", SILENCE.as_secs());
                say(lb, Lb::Silent(text.into()));
                silent_at = Instant::now() + SILENCE;
            }
            Ok(Err(error)) => return error.to_string(),
            Ok(Ok(false)) => return "it closed the connection".into(),
            Ok(Ok(true)) => match parse(&line) {
                Ok(said) => {
                    say(lb, Lb::Said(said));
                    line.clear();
                    silent_at = Instant::now() + SILENCE;
                }
                Err(why) => return why,
            },
        }
    }
}

/// Reads up to a newline, which is not kept. False at the end of file. Safe to drop: nothing read is lost.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin), line: &mut Vec<u8>) -> io::Result<bool> {
    loop {
        let available = reader.fill_buf().await?;
        if available.is_empty() {
            return Ok(false);
        }
        let end = available.iter().position(|&octet| octet == b'\n');
        let taken = end.unwrap_or(available.len());
        if line.len() + taken > MAX_LINE {
            return Err(io::Error::other(format!("a line of more than {MAX_LINE} octets")));
        }
        line.extend_from_slice(available.get(..taken).unwrap_or_default());
        reader.consume(end.map_or(taken, |end| end + 1));
        if end.is_some() {
            return Ok(true);
        }
    }
}

fn parse(line: &[u8]) -> Result<Said, String> {
    let said: Said = serde_json::from_slice(line).map_err(|error| format!("a line that is no readiness: {error}"))?;
    if said.version == VERSION {
        Ok(said)
    } else {
        Err(format!("it speaks version {} of the readiness protocol, we speak {VERSION}", said.version))
    }
}

async fn speak(mut write: OwnedWriteHalf, connectivity: &mut watch::Receiver<Families>) -> String {
    loop {
        let message = Connectivity { version: VERSION, connectivity: *connectivity.borrow_and_update() };
        let mut line = match serde_json::to_vec(&message) {
            Ok(line) => line,
            Err(error) => return error.to_string(),
        };
        line.push(b'\n');
        if let Err(error) = write.write_all(&line).await {
            return error.to_string();
        }
        tokio::select! {
            biased;
            changed = connectivity.changed() => if changed.is_err() {
                return "the router ends".into();
            },
            () = tokio::time::sleep(HEARTBEAT) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener as StdListener;
    use std::time::Duration;

    use tokio::io::AsyncReadExt;
    use tokio::net::UnixListener;

    use super::*;

    const GENEROUS: Duration = Duration::from_secs(20);

    struct Socket(PathBuf);

    impl Socket {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("martlet-{name}-{}.sock", std::process::id()));
            let _ = std::fs::remove_file(&path);
            Self(path)
        }

        fn url(&self) -> String {
            format!("unix://{}", self.0.display())
        }

        fn listen(&self) -> UnixListener {
            let _ = std::fs::remove_file(&self.0);
            let listener = StdListener::bind(&self.0).unwrap();
            listener.set_nonblocking(true).unwrap();
            UnixListener::from_std(listener).unwrap()
        }
    }

    impl Drop for Socket {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    async fn until(client: &mut LbClient, wanted: impl Fn(&Lb) -> bool) -> Lb {
        let wait = async {
            loop {
                let lb = client.next().await;
                if wanted(&lb) {
                    return lb;
                }
            }
        };
        tokio::time::timeout(GENEROUS, wait).await.expect("the word that was waited for")
    }

    const LINE: &[u8] =
        br#"{"version":1,"gateway":"sllb-a","draining":false,"vips":{"20.0.0.1/32":{"ready":true,"reason":""}}}"#;

    async fn write(stream: &mut UnixStream, bytes: &[u8]) {
        stream.write_all(bytes).await.unwrap();
    }

    #[tokio::test]
    async fn an_empty_url_gates_nothing_and_a_wrong_one_is_refused() {
        let mut client = LbClient::new("").unwrap();
        assert_eq!(client.next().await, Lb::Ungated);
        assert!(LbClient::new("tcp://127.0.0.1:1").unwrap_err().contains("unix:///path"));
    }

    #[tokio::test]
    async fn a_word_is_heard_and_the_end_of_the_connection_too() {
        let socket = Socket::new("word");
        let mut client = LbClient::new(&socket.url()).unwrap();
        let silent = until(&mut client, |lb| matches!(lb, Lb::Silent(why) if why.contains("no socket"))).await;
        assert!(matches!(silent, Lb::Silent(_)));
        let listener = socket.listen();
        let (mut lb, _) = listener.accept().await.unwrap();
        write(&mut lb, LINE.split_at(10).0).await;
        tokio::task::yield_now().await;
        write(&mut lb, LINE.split_at(10).1).await;
        write(&mut lb, b"\n").await;
        let Lb::Said(said) = until(&mut client, |lb| matches!(lb, Lb::Said(_))).await else { unreachable!() };
        assert_eq!(said.gateway, "sllb-a");
        client.tell(Families { ipv4: true, ipv6: false });
        let mut told = String::new();
        while !told.contains(r#"{"version":1,"connectivity":{"ipv4":true,"ipv6":false}}"#) {
            let mut buffer = [0; 256];
            let count = tokio::time::timeout(GENEROUS, lb.read(&mut buffer)).await.unwrap().unwrap();
            told.push_str(std::str::from_utf8(&buffer[..count]).unwrap());
        }
        drop(lb);
        until(&mut client, |lb| matches!(lb, Lb::Silent(why) if why.contains("closed"))).await;
    }

    #[tokio::test]
    async fn a_bad_a_long_and_a_strange_line_silence_it() {
        let socket = Socket::new("bad");
        let listener = socket.listen();
        let mut client = LbClient::new(&socket.url()).unwrap();
        let long = vec![b'x'; MAX_LINE + 2];
        let other = br#"{"version":2,"gateway":"a","draining":false,"vips":{}}"#;
        for (bytes, words) in [(b"{}".as_slice(), "no readiness"), (&long, "octets"), (other, "version 2")] {
            let (mut lb, _) = listener.accept().await.unwrap();
            write(&mut lb, LINE).await;
            write(&mut lb, b"\n").await;
            until(&mut client, |lb| matches!(lb, Lb::Said(_))).await;
            // The reader may hang up before all of a long line is written.
            let _ = lb.write_all(bytes).await;
            let _ = lb.write_all(b"\n").await;
            until(&mut client, |lb| matches!(lb, Lb::Silent(why) if why.contains(words))).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn three_seconds_without_a_word_are_silence_and_a_word_ends_it() {
        let socket = Socket::new("silence");
        let listener = socket.listen();
        let mut client = LbClient::new(&socket.url()).unwrap();
        let (mut lb, _) = listener.accept().await.unwrap();
        write(&mut lb, LINE).await;
        write(&mut lb, b"\n").await;
        until(&mut client, |lb| matches!(lb, Lb::Said(_))).await;
        until(&mut client, |lb| matches!(lb, Lb::Silent(why) if why.contains("hangs"))).await;
        write(&mut lb, LINE).await;
        write(&mut lb, b"\n").await;
        until(&mut client, |lb| matches!(lb, Lb::Said(_))).await;
    }
}
