//! A question to the cluster's names: records, that there are none, or that it is not ours.
//!
//! Rows of the Kubernetes DNS specification 1.1.0 are named where they are answered. `pod`
//! records are computed from the name (CoreDNS' `pods insecure`), for addresses of the
//! cluster's pod ranges only; whether such a pod exists is not looked up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{CNAME, HINFO, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::zone::{Endpoint, Kind, Port, Service, Zone};
use crate::{SCHEMA, TTL};

/// What is told to a client, except what belongs to its own message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// NOERROR, NXDOMAIN, ...
    pub code: ResponseCode,
    /// It is from the cluster's own names.
    pub authoritative: bool,
    /// An upstream server has verified it (DNSSEC).
    pub authentic: bool,
    /// Records that answer the question.
    pub answers: Vec<Record>,
    /// The SOA of a negative answer.
    pub authorities: Vec<Record>,
    /// Addresses of the names in `answers`.
    pub additionals: Vec<Record>,
}

impl Answer {
    /// An answer without records.
    pub fn empty(code: ResponseCode) -> Self {
        Answer {
            code,
            authoritative: false,
            authentic: false,
            answers: Vec::new(),
            authorities: Vec::new(),
            additionals: Vec::new(),
        }
    }
}

/// Where the answer comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Not from here: an upstream server is asked.
    Elsewhere,
    /// From here.
    Here(Answer),
    /// The name stands for another, whose records are wanted too.
    Alias {
        /// The CNAME record.
        record: Box<Record>,
        /// What it names.
        target: Name,
    },
}

/// Answers a question of class IN. `turn` changes with each question: it rotates the
/// addresses of a name that has several.
pub fn lookup(zone: &Zone, query: &Query, turn: usize) -> Found {
    let asked = Asked { zone, query, turn };
    if let Some(address) = reverse(query.name()) {
        return asked.pointer(address);
    }
    if zone.domain.is_root() || !zone.domain.zone_of(query.name()) {
        return Found::Elsewhere;
    }
    // Not `num_labels`, which does not count "*".
    let count = |name: &Name| name.iter().count();
    let below = count(query.name()).saturating_sub(count(&zone.domain));
    let labels: Option<Vec<String>> = query.name().iter().take(below).map(lower).collect();
    match labels {
        Some(labels) => {
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            asked.below(&labels)
        }
        None => asked.no_name(&zone.domain),
    }
}

fn lower(label: &[u8]) -> Option<String> {
    Some(std::str::from_utf8(label).ok()?.to_ascii_lowercase())
}

struct Asked<'a> {
    zone: &'a Zone,
    query: &'a Query,
    turn: usize,
}

impl Asked<'_> {
    /// `labels` are those before the domain, the leftmost first.
    fn below(&self, labels: &[&str]) -> Found {
        let zone = self.zone;
        match *labels {
            [] => self.apex(),
            // 2.2
            ["dns-version"] => {
                let text = RData::TXT(TXT::new(vec![SCHEMA.to_owned()]));
                self.records(vec![text])
            }
            ["dns"] | ["svc"] | ["pod"] => self.records(Vec::new()),
            ["ns", "dns"] => self.records(zone.address.map(RData::from).into_iter().collect()),
            [_, "pod"] => self.records(Vec::new()),
            [address, _, "pod"] => self.pod(address),
            [namespace, "svc"] if zone.has_namespace(namespace) => self.records(Vec::new()),
            [name, namespace, "svc"] => match zone.service(namespace, name) {
                Some(service) => self.service(service),
                None => self.no_name(&zone.domain),
            },
            [host, name, namespace, "svc"] => match zone.service(namespace, name) {
                Some(service) => self.host(service, host),
                None => self.no_name(&zone.domain),
            },
            [port, protocol, name, namespace, "svc"] => match zone.service(namespace, name) {
                Some(service) => self.port(service, port, protocol),
                None => self.no_name(&zone.domain),
            },
            _ => self.no_name(&zone.domain),
        }
    }

    fn apex(&self) -> Found {
        let domain = &self.zone.domain;
        let server = below(domain, &["ns", "dns"]);
        let soa = RData::SOA(self.soa(domain));
        self.records(vec![soa, RData::NS(NS(server))])
    }

    /// "10-244-1-5.default.pod": its address, if that can be a pod's.
    fn pod(&self, dashed: &str) -> Found {
        let v4 = || dashed.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
        let v6 = || dashed.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6);
        let address = v4().or_else(|_not_v4| v6()).ok();
        let known = |a: &IpAddr| self.zone.pods.iter().any(|range| range.contains(a));
        match address.filter(known) {
            Some(address) => self.records(vec![address.into()]),
            None => self.no_name(&self.zone.domain),
        }
    }

    fn service(&self, service: &Service) -> Found {
        match &service.kind {
            // 2.3.1
            Kind::Cluster { addresses, ports } => {
                let mut data: Vec<RData> = addresses.iter().map(|a| (*a).into()).collect();
                if self.query.query_type() == RecordType::SRV {
                    return self.services(service, ports.iter());
                }
                self.rotate(&mut data);
                self.records(data)
            }
            // 2.4.1: without ready endpoints there is no such name.
            Kind::Headless { endpoints, .. } => {
                if endpoints.is_empty() {
                    return self.no_name(&self.zone.domain);
                }
                if self.query.query_type() == RecordType::SRV {
                    return self.endpoints(service, endpoints, |_port| true);
                }
                let mut data: Vec<IpAddr> = endpoints.iter().map(|e| e.address).collect();
                data.dedup();
                let mut data: Vec<RData> = data.into_iter().map(RData::from).collect();
                self.rotate(&mut data);
                self.records(data)
            }
            // 2.5
            Kind::External(target) => match target {
                None => Found::Here(Answer::empty(ResponseCode::ServFail)),
                Some(target) => {
                    let record = record(self.query.name(), RData::CNAME(CNAME(target.clone())));
                    if self.query.query_type() == RecordType::CNAME {
                        return self.records(vec![record.data]);
                    }
                    Found::Alias {
                        record: Box::new(record),
                        target: target.clone(),
                    }
                }
            },
        }
    }

    /// 2.4.1: an endpoint by its hostname; or the name between a service and its ports.
    fn host(&self, service: &Service, host: &str) -> Found {
        let between = |ports: &[Port]| {
            let mut named = ports.iter().filter(|p| !p.name.is_empty());
            named.any(|p| host.strip_prefix('_') == Some(p.protocol.as_str()))
        };
        let exists = match &service.kind {
            Kind::Cluster { ports, .. } => between(ports),
            Kind::Headless {
                endpoints,
                by_hostname,
            } => {
                if let Some(indexes) = by_hostname.get(host) {
                    let found = indexes.iter().filter_map(|i| endpoints.get(*i));
                    let mut data: Vec<RData> = found.map(|e| e.address.into()).collect();
                    self.rotate(&mut data);
                    return self.records(data);
                }
                endpoints.iter().any(|e| between(&e.ports))
            }
            Kind::External(_) => false,
        };
        if exists {
            self.records(Vec::new())
        } else {
            self.no_name(&self.zone.domain)
        }
    }

    /// 2.3.2 and 2.4.2: "_http._tcp".
    fn port(&self, service: &Service, port: &str, protocol: &str) -> Found {
        let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_'))
        else {
            return self.no_name(&self.zone.domain);
        };
        let asked = |p: &Port| !p.name.is_empty() && p.name == port && p.protocol == protocol;
        match &service.kind {
            Kind::Cluster { ports, .. } => {
                self.services(service, ports.iter().filter(|p| asked(p)))
            }
            Kind::Headless { endpoints, .. } => self.endpoints(service, endpoints, asked),
            Kind::External(_) => self.no_name(&self.zone.domain),
        }
    }

    /// SRV records of ports that the service itself has.
    fn services<'p>(&self, service: &Service, ports: impl Iterator<Item = &'p Port>) -> Found {
        let target = self.name_of(service, None);
        let data: Vec<RData> = ports.map(|p| srv(p.number, 100, target.clone())).collect();
        if data.is_empty() {
            return self.no_name(&self.zone.domain);
        }
        let mut found = self.records(data);
        if let (Found::Here(answer), Kind::Cluster { addresses, .. }) = (&mut found, &service.kind)
            && !answer.answers.is_empty()
        {
            let addresses = addresses.iter().map(|a| record(&target, (*a).into()));
            answer.additionals = addresses.collect();
        }
        found
    }

    /// SRV records of ports that the endpoints have.
    fn endpoints(
        &self,
        service: &Service,
        endpoints: &[Endpoint],
        asked: impl Fn(&Port) -> bool,
    ) -> Found {
        let mut ports = Vec::new();
        for endpoint in endpoints {
            let of = endpoint.ports.iter().filter(|p| asked(p));
            ports.extend(of.map(|port| (port.number, endpoint)));
        }
        if ports.is_empty() {
            return self.no_name(&self.zone.domain);
        }
        let weight = u16::try_from(100 / ports.len()).unwrap_or(0).max(1);
        let mut additionals = Vec::with_capacity(ports.len());
        let data = ports.into_iter().map(|(number, endpoint)| {
            let target = self.name_of(service, Some(&endpoint.hostname));
            additionals.push(record(&target, endpoint.address.into()));
            srv(number, weight, target)
        });
        let mut data: Vec<RData> = data.collect();
        data.dedup();
        additionals.dedup();
        self.rotate(&mut data);
        let mut found = self.records(data);
        if let Found::Here(answer) = &mut found
            && !answer.answers.is_empty()
        {
            answer.additionals = additionals;
        }
        found
    }

    /// PTR records (2.3.3, 2.4.3). An address of the cluster that has none is NXDOMAIN, and is
    /// never forwarded.
    fn pointer(&self, address: IpAddr) -> Found {
        let zone = self.zone;
        let targets = zone.pointers(address).iter().filter_map(|pointer| {
            let (namespace, name) = pointer.service.split_once('/')?;
            let service = zone.service(namespace, name)?;
            let target = self.name_of(service, pointer.hostname.as_deref());
            Some(RData::PTR(PTR(target)))
        });
        let targets: Vec<RData> = targets.collect();
        let range = zone.ranges.iter().find(|range| range.contains(&address));
        if targets.is_empty() && range.is_none() {
            return Found::Elsewhere;
        }
        // The least domain of whole labels that has all of the range.
        let bits_of_label = if address.is_ipv4() { 8 } else { 4 };
        let labels = range.map_or(0, |range| usize::from(range.prefix_len() / bits_of_label));
        let apex = self.query.name().trim_to(labels + 2);
        if targets.is_empty() {
            return self.no_name(&apex);
        }
        self.records_below(targets, &apex)
    }

    fn name_of(&self, service: &Service, hostname: Option<&str>) -> Name {
        let labels = [service.name.as_str(), service.namespace.as_str(), "svc"];
        let name = below(&self.zone.domain, &labels);
        match hostname {
            Some(hostname) => below(&name, &[hostname]),
            None => name,
        }
    }

    fn rotate(&self, data: &mut [RData]) {
        if !data.is_empty() {
            let by = self.turn % data.len();
            data.rotate_left(by);
        }
    }

    /// All that the name has; the answer is what was asked for of it.
    fn records(&self, data: Vec<RData>) -> Found {
        self.records_below(data, &self.zone.domain)
    }

    fn records_below(&self, data: Vec<RData>, apex: &Name) -> Found {
        let name = self.query.name();
        let asked = self.query.query_type();
        let mut answer = self.positive();
        if asked == RecordType::ANY && !data.is_empty() {
            // RFC 8482, 4.2
            let least = HINFO::new("RFC8482".to_owned(), String::new());
            answer.answers = vec![record(name, RData::HINFO(least))];
            return Found::Here(answer);
        }
        let matching = data.into_iter().filter(|d| d.record_type() == asked);
        answer.answers = matching.map(|data| record(name, data)).collect();
        if answer.answers.is_empty() {
            answer.authorities = vec![record(apex, RData::SOA(self.soa(apex)))];
        }
        Found::Here(answer)
    }

    fn no_name(&self, apex: &Name) -> Found {
        let mut answer = self.positive();
        answer.code = ResponseCode::NXDomain;
        answer.authorities = vec![record(apex, RData::SOA(self.soa(apex)))];
        Found::Here(answer)
    }

    fn positive(&self) -> Answer {
        let mut answer = Answer::empty(ResponseCode::NoError);
        answer.authoritative = true;
        answer
    }

    fn soa(&self, apex: &Name) -> SOA {
        let domain = &self.zone.domain;
        SOA::new(
            below(domain, &["ns", "dns"]),
            below(
                if domain.is_root() { apex } else { domain },
                &["hostmaster"],
            ),
            self.zone.serial,
            7200,
            1800,
            86400,
            TTL,
        )
    }
}

fn srv(number: u16, weight: u16, target: Name) -> RData {
    RData::SRV(SRV::new(0, weight, number, target))
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

/// A name below `apex`; `apex` itself if that would be too long to be a name.
fn below(apex: &Name, labels: &[&str]) -> Name {
    let mut name = apex.clone();
    for label in labels.iter().rev() {
        name = match name.prepend_label(label.as_bytes()) {
            Ok(name) => name,
            Err(_too_long) => return apex.clone(),
        };
    }
    name
}

/// The address that a name below in-addr.arpa or ip6.arpa stands for; `None` for any other.
fn reverse(name: &Name) -> Option<IpAddr> {
    let labels: Vec<&[u8]> = name.iter().collect();
    let is = |label: &[u8], text: &str| label.eq_ignore_ascii_case(text.as_bytes());
    let (of, labels) = match labels.as_slice() {
        [rest @ .., of, arpa] if is(arpa, "arpa") => (*of, rest),
        _ => return None,
    };
    if is(of, "in-addr") {
        let [d, c, b, a] = labels else { return None };
        let octet = |label: &[u8]| std::str::from_utf8(label).ok()?.parse::<u8>().ok();
        Some(Ipv4Addr::new(octet(a)?, octet(b)?, octet(c)?, octet(d)?).into())
    } else if is(of, "ip6") && labels.len() == 32 {
        let mut bits = 0_u128;
        for label in labels.iter().rev() {
            let [digit] = label else { return None };
            bits = bits << 4 | u128::from(char::from(*digit).to_digit(16)?);
        }
        Some(Ipv6Addr::from(bits).into())
    } else {
        None
    }
}

#[cfg(test)]
#[path = "tests/lookup.rs"]
mod tests;
