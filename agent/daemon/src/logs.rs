//! Container logs: from the files that shims write (CRI format) to whoever asked.
//!
//! A line is "TIME STREAM TAG TEXT", tag P for a part of a line and F for its end.
//! Files are rotated to NAME.1; both are read. Called by `serve.rs`.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent_sys::clock;
use proto::v1;
use proto::v1::attach_up::Up;

use crate::attach::{Gone, Refusal, Upward, instances, lives};
use crate::startup::Sys;

/// While a log is followed and nothing new is in it.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes in one message.
const CHUNK: usize = 32 << 10;

/// What of a log is asked for.
#[derive(Debug, Clone)]
struct Filter {
    timestamps: bool,
    since: Option<String>,
}

impl Filter {
    /// Appends what is asked for of one line of the file.
    fn take(&self, line: &[u8], out: &mut Vec<u8>) {
        let mut parts = line.splitn(4, |b| *b == b' ');
        let (Some(time), Some(_stream), Some(tag), Some(text)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        // RFC 3339 in UTC with as many digits each: the order of texts is that of times.
        if self
            .since
            .as_ref()
            .is_some_and(|since| time < since.as_bytes())
        {
            return;
        }
        if self.timestamps {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        out.extend_from_slice(text);
        if tag != b"P" {
            out.push(b'\n');
        }
    }
}

/// Reads a file that grows, whole lines only, and notices when it was rotated.
struct Tail {
    path: PathBuf,
    reader: Option<BufReader<File>>,
    line: Vec<u8>,
}

impl Tail {
    fn new(path: PathBuf) -> Tail {
        Tail {
            path,
            reader: None,
            line: Vec::new(),
        }
    }

    /// Up to a chunk of what is there, through the filter; true when there is more.
    fn read(&mut self, filter: &Filter, out: &mut Vec<u8>) -> std::io::Result<bool> {
        if self.reader.is_none() {
            match File::open(&self.path) {
                Ok(file) => self.reader = Some(BufReader::new(file)),
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        let Some(reader) = &mut self.reader else {
            return Ok(false);
        };
        while out.len() < CHUNK {
            if reader.read_until(b'\n', &mut self.line)? == 0 {
                return self.rotated();
            }
            if self.line.ends_with(b"\n") {
                filter.take(&self.line, out);
                self.line.clear();
            }
        }
        Ok(true)
    }

    /// At the end of the file: is there another one under its name by now?
    fn rotated(&mut self) -> std::io::Result<bool> {
        let Some(reader) = &self.reader else {
            return Ok(false);
        };
        let own = reader.get_ref().metadata()?.ino();
        let there = match std::fs::metadata(&self.path) {
            Ok(metadata) => metadata.ino(),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(e),
        };
        if own == there {
            return Ok(false);
        }
        self.reader = None;
        self.line.clear();
        Ok(true)
    }

    /// Begins so that about so many lines are left.
    fn skip_to_last(&mut self, lines: u64) -> std::io::Result<()> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        let mut reader = BufReader::new(file);
        let offset = last_lines(&mut reader, lines)?;
        reader.seek(SeekFrom::Start(offset))?;
        self.reader = Some(reader);
        Ok(())
    }
}

/// Offset of the last so many lines; parts of one line count as one.
fn last_lines(reader: &mut BufReader<File>, lines: u64) -> std::io::Result<u64> {
    let lines = usize::try_from(lines).unwrap_or(usize::MAX);
    let mut starts = std::collections::VecDeque::new();
    let mut line = Vec::new();
    let (mut offset, mut begins) = (0_u64, true);
    loop {
        line.clear();
        let length = reader.read_until(b'\n', &mut line)?;
        if length == 0 {
            break;
        }
        if begins {
            starts.push_back(offset);
            if starts.len() > lines {
                starts.pop_front();
            }
        }
        begins = line.splitn(4, |b| *b == b' ').nth(2) != Some(b"P");
        offset += length as u64;
    }
    Ok(if lines == 0 {
        offset
    } else {
        starts.front().copied().unwrap_or(offset)
    })
}

/// Time before which lines are not asked for, as logs have it.
fn since(seconds: i64) -> Option<String> {
    let at = clock::unix_ms().saturating_sub(seconds.saturating_mul(1000));
    let time = jiff::Timestamp::from_millisecond(at).ok()?;
    Some(format!("{time:.9}"))
}

/// Serves one request.
pub(crate) async fn serve(
    sys: &Arc<Sys>,
    up: &Upward,
    request: &v1::OpenLogs,
    down: &mut tonic::Streaming<v1::AttachDown>,
) -> Result<(), Refusal> {
    let found = instances(sys, &request.pod_uid, &request.container).await?;
    let mut this = found.current.clone();
    if request.previous {
        if this.attempt == 0 {
            return Err(Refusal {
                code: tonic::Code::InvalidArgument,
                message: format!(
                    "previous terminated container {:?} in pod {:?} not found",
                    this.container, found.pod
                ),
            });
        }
        this.attempt -= 1;
    } else if !found.began {
        // Between two instances: what the last one said is what there is.
        if this.attempt == 0 {
            return Err(Refusal {
                code: tonic::Code::InvalidArgument,
                message: format!(
                    "container {:?} in pod {:?} is waiting to start: {}",
                    this.container, found.pod, found.waits
                ),
            });
        }
        this.attempt -= 1;
    }
    let path = sys.layout.log(
        &found.namespace,
        &found.pod,
        &this.uid,
        &this.container,
        this.attempt,
    );
    let filter = Filter {
        timestamps: request.timestamps,
        since: request.since_seconds.and_then(since),
    };
    let mut tails = Vec::new();
    let mut current = Tail::new(path.clone());
    match request.tail_lines {
        Some(lines) => {
            let lines = u64::try_from(lines).unwrap_or(0);
            current.skip_to_last(lines).map_err(unreadable(&path))?;
        }
        None => tails.push(Tail::new(with_suffix(&path, ".1"))),
    }
    tails.push(current);
    let send = async {
        for mut tail in tails {
            let last = tail.path == path;
            loop {
                let over = !(last && request.follow && lives(sys, &this).await);
                let name = tail.path.clone();
                let filter = filter.clone();
                let (back, out, more) = sys
                    .blocking(move |_sys| {
                        let mut out = Vec::new();
                        let more = tail.read(&filter, &mut out);
                        Ok((tail, out, more))
                    })
                    .await
                    .map_err(|message| Refusal {
                        code: tonic::Code::Internal,
                        message,
                    })?;
                tail = back;
                let more = more.map_err(unreadable(&name))?;
                if !out.is_empty() && up.send(Up::Stdout(out)).await.is_err() {
                    return Ok(());
                }
                if !more {
                    if over {
                        break;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        match up.send(Up::ExitCode(0)).await {
            Ok(()) | Err(Gone) => Ok(()),
        }
    };
    // The way down says nothing for logs; its end says that nobody listens.
    let gone = async { while let Ok(Some(_)) = down.message().await {} };
    tokio::pin!(gone);
    tokio::select! {
        result = send => result,
        () = gone, if request.follow => Ok(()),
    }
}

fn unreadable(path: &Path) -> impl FnOnce(std::io::Error) -> Refusal + use<> {
    let path = path.display().to_string();
    move |error| Refusal {
        code: tonic::Code::Internal,
        message: format!("{path}: {error}"),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn all(tail: &mut Tail, filter: &Filter) -> String {
        let mut out = Vec::new();
        while tail.read(filter, &mut out).unwrap() {}
        String::from_utf8(out).unwrap()
    }

    fn filter() -> Filter {
        Filter {
            timestamps: false,
            since: None,
        }
    }

    const LOG: &str = "2026-01-01T00:00:01.000000000Z stdout F one\n\
                       2026-01-01T00:00:02.000000000Z stderr P tw\n\
                       2026-01-01T00:00:03.000000000Z stderr F o\n\
                       2026-01-01T00:00:04.000000000Z stdout F three words here\n";

    #[test]
    fn lines_parts_and_filters() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        std::fs::write(&path, LOG).unwrap();
        assert_eq!(
            all(&mut Tail::new(path.clone()), &filter()),
            "one\ntwo\nthree words here\n"
        );
        let since = Filter {
            timestamps: false,
            since: Some("2026-01-01T00:00:03.5Z".into()),
        };
        assert_eq!(
            all(&mut Tail::new(path.clone()), &since),
            "three words here\n"
        );
        let timed = Filter {
            timestamps: true,
            since: None,
        };
        assert!(
            all(&mut Tail::new(path.clone()), &timed)
                .starts_with("2026-01-01T00:00:01.000000000Z one\n")
        );
        for (lines, text) in [
            (0, ""),
            (1, "three words here\n"),
            (2, "two\nthree words here\n"),
            (9, "one\ntwo\nthree words here\n"),
        ] {
            let mut tail = Tail::new(path.clone());
            tail.skip_to_last(lines).unwrap();
            assert_eq!(all(&mut tail, &filter()), text, "{lines}");
        }
    }

    #[test]
    fn a_growing_file_gives_whole_lines_and_survives_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut tail = Tail::new(path.clone());
        assert_eq!(all(&mut tail, &filter()), "");
        let mut file = File::create(&path).unwrap();
        write!(file, "2026-01-01T00:00:01.0Z stdout F on").unwrap();
        assert_eq!(all(&mut tail, &filter()), "");
        writeln!(file, "e").unwrap();
        assert_eq!(all(&mut tail, &filter()), "one\n");
        writeln!(file, "2026-01-01T00:00:02.0Z stdout F two").unwrap();
        std::fs::rename(&path, folder.path().join("0.log.1")).unwrap();
        std::fs::write(&path, "2026-01-01T00:00:03.0Z stdout F three\n").unwrap();
        assert_eq!(all(&mut tail, &filter()), "two\nthree\n");
    }
}
