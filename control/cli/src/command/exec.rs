//! `foil exec`: a process in a running container, as if it were run here.
//!
//! Moves bytes between our standard streams and the node's; the exit code of the
//! process becomes ours.

use proto::v1;
use proto::v1::exec_input::Input;
use proto::v1::exec_output::Output;
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::logs;
use crate::error::{CommandError, RequestError};
use crate::session::Session;
use crate::terminal;

/// Messages that wait for the network before our input has to.
const QUEUE: usize = 16;

/// Exit code of a process that SIGTERM ended, as shells have it.
const TERMINATED: u8 = 128 + 15;

/// Run a command in a container
#[derive(Debug, clap::Args)]
#[command(after_long_help = "\
The command comes after `--`. Its exit code becomes that of foil.

Examples:
  foil exec busybox -- ls /
  foil exec -it busybox -- sh              a shell
  foil exec deploy/web -c app -- env
  tar c . | foil exec -i busybox -- tar x -C /tmp")]
pub(crate) struct Args {
    /// Pod, or KIND/NAME of an object that has pods (deploy/web)
    #[arg(value_name = "POD")]
    what: String,
    /// Container of the pod; default: the first one
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Pass standard input to the command
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Run the command in a terminal
    #[arg(short, long)]
    tty: bool,
    /// Do not print which container was chosen
    #[arg(short, long)]
    quiet: bool,
    /// Command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), CommandError> {
    let mut client = session.connect().await?;
    let namespace = session.namespace(&client);
    let pod = logs::one(session, &mut client, &namespace, &args.what).await?;
    let pod_name = pod.metadata.name.clone().unwrap_or_default();
    let container = logs::container(&pod, &pod_name, args.container.as_deref())?;

    // A terminal without one here is of no use to anybody, and would only hide that.
    let tty = args.tty && terminal::is_input();
    if args.tty && !tty {
        if !args.stdin {
            return Err(RequestError::NotATerminal.into());
        }
        eprintln!("Unable to use a TTY - input is not a terminal or the right kind of file");
    }
    let size = terminal::size()
        .filter(|_| tty)
        .map(|(columns, rows)| v1::TerminalSize { columns, rows });
    let start = v1::ExecStart {
        namespace,
        pod: pod_name,
        container,
        command: args.command,
        stdin: args.stdin,
        tty,
        size,
    };
    let (sender, receiver) = mpsc::channel(QUEUE);
    let first = v1::ExecInput {
        input: Some(Input::Start(start)),
    };
    // The channel is empty and the call has not taken the receiver yet: it cannot be full.
    sender
        .try_send(first)
        .map_err(|_full| RequestError::NotATerminal)?;
    let mut output = client.exec(ReceiverStream::new(receiver)).await?;

    let raw = if tty {
        Some(terminal::Raw::enter()?)
    } else {
        None
    };
    if args.stdin {
        tokio::spawn(pass_input(sender.clone()));
    }
    if tty {
        tokio::spawn(pass_sizes(sender.clone()));
    }
    let mut code = None;
    let mut ended = signal(SignalKind::terminate())?;
    let result = loop {
        let message = tokio::select! {
            message = output.message() => message,
            // Not at once: the terminal has to be given back first.
            _ = ended.recv() => break Err(CommandError::Exit(TERMINATED)),
        };
        let message = match message {
            Ok(Some(message)) => message,
            Ok(None) => break Ok(()),
            Err(status) => break Err(client.refused(status).into()),
        };
        let written = match message.output {
            Some(Output::Stdout(bytes)) => write_all(&mut std::io::stdout(), &bytes),
            Some(Output::Stderr(bytes)) => write_all(&mut std::io::stderr(), &bytes),
            Some(Output::ExitCode(exit)) => {
                code = Some(exit);
                break Ok(());
            }
            None => Ok(()),
        };
        if let Err(error) = written {
            break Err(CommandError::Output(error));
        }
    };
    // Before anything is printed: error messages want a terminal that is not raw.
    drop(raw);
    drop(sender);
    result?;
    match code {
        Some(0) => Ok(()),
        Some(code) => Err(CommandError::Exit(u8::try_from(code & 0xff).unwrap_or(1))),
        None => Err(RequestError::Field {
            what: "exec".into(),
            message: "the connection ended before the process".into(),
        }
        .into()),
    }
}

fn write_all(to: &mut dyn std::io::Write, bytes: &[u8]) -> std::io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

/// Passes standard input on until its end, or until the call has ended.
async fn pass_input(sender: mpsc::Sender<v1::ExecInput>) {
    let mut input = tokio::io::stdin();
    let mut buffer = vec![0; 32 << 10];
    loop {
        let message = match input.read(&mut buffer).await {
            // An input that cannot be read has nothing more to give either.
            Ok(0) | Err(_) => Input::StdinClosed(true),
            Ok(length) => Input::Stdin(buffer.get(..length).unwrap_or_default().to_vec()),
        };
        let last = matches!(message, Input::StdinClosed(_));
        if sender
            .send(v1::ExecInput {
                input: Some(message),
            })
            .await
            .is_err()
            || last
        {
            return;
        }
    }
}

/// The terminal's size, each time it changes.
async fn pass_sizes(sender: mpsc::Sender<v1::ExecInput>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else {
        return;
    };
    while changes.recv().await.is_some() {
        let Some((columns, rows)) = terminal::size() else {
            continue;
        };
        let size = Input::Resize(v1::TerminalSize { columns, rows });
        if sender
            .send(v1::ExecInput { input: Some(size) })
            .await
            .is_err()
        {
            return;
        }
    }
}
