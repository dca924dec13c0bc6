//! Container logs: from the files that shims write to the caller.
//!
//! How the files are read is `log_file.rs`. Called by `serve.rs`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use agent_sys::clock;
use proto::v1;
use proto::v1::attach_up::Up;

use crate::attach::{Gone, Refusal, Upward, instances, lives};
use crate::log_file::{Filter, LogFile};
use crate::startup::Sys;

/// While a log is followed and nothing new is in it.
const PAUSE: Duration = Duration::from_millis(100);

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
    let tail = request.tail_lines.map(|n| u64::try_from(n).unwrap_or(0));
    let name = path.clone();
    let mut log = work(sys, &path, move || {
        let mut log = LogFile::open(&name)?;
        if let Some(lines) = tail {
            log.skip_to_last(lines)?;
        }
        Ok(log)
    })
    .await?;
    let send = async {
        loop {
            let last = !(request.follow && lives(sys, &this).await);
            let (filter, follow) = (filter.clone(), request.follow);
            let (back, out, more) = work(sys, &path, move || {
                let mut out = Vec::new();
                let more = log.read(&filter, follow, &mut out)?;
                Ok((log, out, more))
            })
            .await?;
            log = back;
            if !out.is_empty() && up.send(Up::Stdout(out)).await.is_err() {
                return Ok(());
            }
            if !more && last {
                break;
            }
            if !more {
                tokio::time::sleep(PAUSE).await;
            }
        }
        match up.send(Up::ExitCode(0)).await {
            Ok(()) | Err(Gone) => Ok(()),
        }
    };
    // Nothing is sent down for logs; the end of that stream is the caller's.
    let gone = async { while let Ok(Some(_)) = down.message().await {} };
    tokio::pin!(gone);
    tokio::select! {
        result = send => result,
        () = gone, if request.follow => Ok(()),
    }
}

/// Reads on a thread for that.
async fn work<T: Send + 'static>(
    sys: &Arc<Sys>,
    path: &Path,
    read: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    let done = sys
        .blocking(move |_sys| read().map_err(|e| e.to_string()))
        .await;
    done.map_err(|message| Refusal {
        code: tonic::Code::Internal,
        message: format!("{}: {message}", path.display()),
    })
}
