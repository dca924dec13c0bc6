//! The command line: `--name value` and `--flag`, nothing more.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

const FLAGS: [&str; 2] = ["keepalive", "udp"];

/// Options by name, without the dashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Args(BTreeMap<String, String>);

impl Args {
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = BTreeMap::new();
        while let Some(word) = words.next() {
            let name = word
                .strip_prefix("--")
                .ok_or_else(|| format!("unexpected {word:?}"))?;
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None if FLAGS.contains(&name) => (name, String::new()),
                None => (
                    name,
                    words
                        .next()
                        .ok_or_else(|| format!("--{name} wants a value"))?,
                ),
            };
            if options.insert(name.to_owned(), value).is_some() {
                return Err(format!("--{name} is there twice"));
            }
        }
        Ok(Self(options))
    }

    /// Refuses options that the command does not know.
    pub(crate) fn only(&self, known: &[&str]) -> Result<(), String> {
        match self.0.keys().find(|name| !known.contains(&name.as_str())) {
            Some(name) => Err(format!("--{name} is not an option of this command")),
            None => Ok(()),
        }
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    pub(crate) fn value<T: FromStr>(&self, name: &str) -> Result<Option<T>, String> {
        let parse = |text: &String| {
            text.parse()
                .map_err(|_invalid| format!("--{name}: {text:?} is not a value for it"))
        };
        self.0.get(name).map(parse).transpose()
    }

    pub(crate) fn millis(&self, name: &str, default: u64) -> Result<Duration, String> {
        Ok(Duration::from_millis(self.value(name)?.unwrap_or(default)))
    }

    /// Address and HTTP path from `--addr` or `--url`.
    pub(crate) fn target(&self) -> Result<(SocketAddr, String), String> {
        let (address, path) = match (self.text("addr"), self.text("url")) {
            (Some(address), None) => (address.to_owned(), "/".to_owned()),
            (None, Some(url)) => {
                let rest = url
                    .strip_prefix("http://")
                    .ok_or("--url must begin with http://")?;
                let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
                let port = if host.contains(':') { "" } else { ":80" };
                (format!("{host}{port}"), format!("/{path}"))
            }
            _ => return Err("one of --addr and --url is needed".to_owned()),
        };
        let parsed = address
            .parse()
            .map_err(|_invalid| format!("{address:?} is not IP:PORT"))?;
        Ok((parsed, path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn targets_are_addresses_with_paths() {
        for (line, address, path) in [
            ("--addr 10.0.0.1:80", "10.0.0.1:80", "/"),
            ("--url http://10.0.0.1", "10.0.0.1:80", "/"),
            ("--url=http://10.0.0.1:81/a/b", "10.0.0.1:81", "/a/b"),
        ] {
            let target = parse(line).unwrap().target().unwrap();
            assert_eq!(
                target,
                (address.parse().unwrap(), path.to_owned()),
                "{line}"
            );
        }
        for line in [
            "",
            "--url https://10.0.0.1",
            "--addr name:80",
            "--addr 1.2.3.4:5 --url http://x",
        ] {
            assert!(parse(line).unwrap().target().is_err(), "{line}");
        }
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for line in ["x", "--requests", "--udp --udp", "-x"] {
            assert!(parse(line).is_err(), "{line}");
        }
        let args = parse("--udp --requests 3x").unwrap();
        assert!(args.flag("udp") && args.value::<u64>("requests").is_err());
        assert!(args.only(&["udp"]).is_err() && args.only(&["udp", "requests"]).is_ok());
    }
}
