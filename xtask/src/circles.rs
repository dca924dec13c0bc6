//! Circles between the files of a crate: a file that needs another that needs it.
//!
//! Edges are the paths that a file names (`use`, and paths in code), resolved to the file
//! that is the module; code for tests is left out. A module that only hands on what its
//! submodules define (`pub use`) does not depend on them.
//! Called by `tidy`.

use crate::source::Source;
use std::collections::{BTreeMap, BTreeSet};
use syn::visit::{self, Visit};

/// A module by its path inside the crate; the crate's root is empty.
type Module = Vec<String>;

/// A line for each circle, with its files.
pub(crate) fn check(sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (folder, files) in crates(sources) {
        let graph = match edges(&files) {
            Ok(graph) => graph,
            Err(error) => {
                wrong.push(error);
                continue;
            }
        };
        for circle in circles(&graph) {
            let names: Vec<String> = circle.iter().map(|module| module.join("/")).collect();
            let ties: Vec<String> = circle
                .iter()
                .flat_map(|from| {
                    let inside = graph[from].iter().filter(|to| circle.contains(*to));
                    inside.map(move |to| format!("{} -> {}", from.join("/"), to.join("/")))
                })
                .collect();
            wrong.push(format!(
                "{folder}/src: a circle of {} files: {} ({})",
                names.len(),
                names.join(", "),
                ties.join(", ")
            ));
        }
    }
    wrong
}

/// Product files by crate folder and module.
fn crates(sources: &[Source]) -> BTreeMap<&str, BTreeMap<Module, &Source>> {
    let mut crates: BTreeMap<&str, BTreeMap<Module, &Source>> = BTreeMap::new();
    for source in sources {
        let Some((folder, inside)) = source.path.split_once("/src/") else {
            continue;
        };
        if inside.starts_with("bin/") || source.is_test_module() {
            continue;
        }
        let mut module: Module = inside
            .trim_end_matches(".rs")
            .split('/')
            .map(str::to_owned)
            .collect();
        let last = module.last().map_or("", String::as_str);
        if last == "mod" || (module.len() == 1 && ["lib", "main"].contains(&last)) {
            module.pop();
        }
        crates.entry(folder).or_default().insert(module, source);
    }
    crates
}

/// What each file needs of the others.
fn edges(files: &BTreeMap<Module, &Source>) -> Result<BTreeMap<Module, BTreeSet<Module>>, String> {
    let mut graph = BTreeMap::new();
    for (module, source) in files {
        let file = syn::parse_file(&source.text)
            .map_err(|error| format!("{}: cannot be parsed: {error}", source.path))?;
        let mut names = Names {
            module: module.clone(),
            paths: Vec::new(),
        };
        names.visit_file(&file);
        let needed = names
            .paths
            .iter()
            .filter_map(|path| resolve(path, files))
            .filter(|to| !module.starts_with(to))
            .collect();
        graph.insert(module.clone(), needed);
    }
    Ok(graph)
}

/// The module that a path from the crate's root leads into.
fn resolve(path: &[String], files: &BTreeMap<Module, &Source>) -> Option<Module> {
    (1..=path.len())
        .rev()
        .map(|length| &path[..length])
        .find(|prefix| files.contains_key(*prefix))
        .map(<[String]>::to_vec)
}

/// Collects paths as they are from the crate's root.
struct Names {
    module: Module,
    paths: Vec<Module>,
}

impl Names {
    /// Keeps a path if it begins at the crate, here, or above.
    fn keep(&mut self, segments: &[String]) {
        let mut base = self.module.clone();
        let mut rest = segments;
        match segments.first().map(String::as_str) {
            Some("crate") => {
                base.clear();
                rest = &segments[1..];
            }
            Some("self") => rest = &segments[1..],
            Some("super") => {
                while rest.first().is_some_and(|first| first == "super") {
                    base.pop();
                    rest = &rest[1..];
                }
            }
            // A submodule; a path outside our modules does not resolve to a longer one.
            Some(_) => {}
            None => return,
        }
        base.extend(rest.iter().cloned());
        self.paths.push(base);
    }

    fn keep_tree(&mut self, before: &mut Vec<String>, tree: &syn::UseTree) {
        match tree {
            syn::UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.keep_tree(before, &path.tree);
                before.pop();
            }
            syn::UseTree::Group(group) => {
                for tree in &group.items {
                    self.keep_tree(before, tree);
                }
            }
            syn::UseTree::Name(name) => self.keep_leaf(before, Some(name.ident.to_string())),
            syn::UseTree::Rename(name) => self.keep_leaf(before, Some(name.ident.to_string())),
            syn::UseTree::Glob(_) => self.keep_leaf(before, None),
        }
    }

    fn keep_leaf(&mut self, before: &[String], last: Option<String>) {
        let mut segments = before.to_vec();
        segments.extend(last.filter(|name| name != "self"));
        self.keep(&segments);
    }
}

impl<'ast> Visit<'ast> for Names {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !attributes(item).iter().any(is_for_tests) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if matches!(item.vis, syn::Visibility::Inherited) {
            self.keep_tree(&mut Vec::new(), &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.segments.len() > 1 {
            let segments: Vec<String> = path
                .segments
                .iter()
                .map(|segment| segment.ident.to_string())
                .collect();
            self.keep(&segments);
        }
        visit::visit_path(self, path);
    }
}

/// Those of the items that code for tests consists of.
fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    if let syn::Item::Mod(item) = item {
        &item.attrs
    } else if let syn::Item::Fn(item) = item {
        &item.attrs
    } else if let syn::Item::Use(item) = item {
        &item.attrs
    } else if let syn::Item::Impl(item) = item {
        &item.attrs
    } else {
        &[]
    }
}

/// `#[cfg(test)]` and `#[test]`.
fn is_for_tests(attribute: &syn::Attribute) -> bool {
    let word = |path: &syn::Path| path.is_ident("test");
    word(attribute.path())
        || (attribute.path().is_ident("cfg")
            && attribute
                .parse_args::<syn::Path>()
                .is_ok_and(|path| word(&path)))
}

/// Strongly connected sets of more than one file. The graphs are small: a set is what can be
/// reached from a file and reaches it.
fn circles(graph: &BTreeMap<Module, BTreeSet<Module>>) -> Vec<BTreeSet<Module>> {
    let reached: BTreeMap<&Module, BTreeSet<&Module>> = graph
        .keys()
        .map(|from| (from, reach(graph, from)))
        .collect();
    let mut seen: BTreeSet<&Module> = BTreeSet::new();
    let mut circles = Vec::new();
    for from in graph.keys() {
        if seen.contains(from) || !reached[from].contains(from) {
            continue;
        }
        let back = |to: &&&Module| reached.get(**to).is_some_and(|set| set.contains(from));
        let circle: BTreeSet<&Module> = reached[from].iter().filter(back).copied().collect();
        seen.extend(circle.iter().copied());
        circles.push(circle.into_iter().cloned().collect());
    }
    circles
}

fn reach<'g>(graph: &'g BTreeMap<Module, BTreeSet<Module>>, from: &Module) -> BTreeSet<&'g Module> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&Module> = graph.get(from).into_iter().flatten().collect();
    while let Some(module) = next.pop() {
        if reached.insert(module) {
            next.extend(graph.get(module).into_iter().flatten());
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> = files
            .iter()
            .map(|(path, text)| Source {
                path: format!("a/b/src/{path}"),
                text: (*text).to_owned(),
            })
            .collect();
        check(&sources)
    }

    #[test]
    fn files_that_need_each_other_are_a_circle() {
        let circle = "a/b/src: a circle of 2 files: x, y (x -> y, y -> x)".to_owned();
        let needs_y = "use crate::y::Y;";
        for needs_x in [
            "use crate::x::X;",
            "use super::x;",
            "fn f() { crate::x::f() }",
            "struct Y(super::x::X);",
        ] {
            let wrong = found(&[("x.rs", needs_y), ("y.rs", needs_x)]);
            assert_eq!(wrong, [circle.as_str()], "{needs_x}");
        }
        assert_eq!(
            found(&[("x.rs", needs_y), ("y.rs", "use other::x::X;")]),
            [""; 0]
        );
    }

    #[test]
    fn longer_circles_and_submodules() {
        let wrong = found(&[
            ("lib.rs", "mod x; mod y; mod z;"),
            ("x.rs", "mod inner; fn f() { inner::f() }"),
            ("x/inner.rs", "use crate::z::Z;"),
            ("z.rs", "use crate::x;"),
            ("y.rs", "use crate::z::Z;"),
        ]);
        let expected = "a/b/src: a circle of 3 files: x, x/inner, z \
                        (x -> x/inner, x/inner -> z, z -> x)";
        assert_eq!(wrong, [expected]);
    }

    #[test]
    fn tests_and_what_is_above_do_not_count() {
        let wrong = found(&[
            ("lib.rs", "mod x; pub use x::X; pub fn f() {}"),
            (
                "x.rs",
                "mod inner; pub struct X; fn g() { crate::f(); inner::f() }",
            ),
            ("x/inner.rs", "use super::X;"),
            ("y.rs", "#[cfg(test)] mod tests { use crate::z::Z; }"),
            ("z.rs", "use crate::y::Y;"),
        ]);
        assert_eq!(wrong, [""; 0]);
    }
}
