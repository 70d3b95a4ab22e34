//! The folder of a source, with a folder for each group in it. Nothing leads out of it.

use super::document::{Complaint, Document};
use std::io;
use std::path::{Path, PathBuf};
use url::Url;

/// The group of the files that lie in the folder itself.
pub(super) const ITSELF: &str = ".";
/// Who did not answer; see [`super::unreachable`].
pub(super) const UNREACHABLE: &str = "unreachable.csv";

/// A folder that the configuration allows.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    path: PathBuf,
    allowed: Vec<PathBuf>,
}

impl Folder {
    /// The folder of a `file://` URL, which must be one of `allowed` (`sources.folders`) or lie in one. An error finishes
    /// "this source: ".
    pub(super) fn new(address: &Url, allowed: &[PathBuf]) -> Result<Self, String> {
        let path = address
            .to_file_path()
            .ok()
            .filter(|_| address.query().is_none() && address.fragment().is_none())
            .ok_or("its Address is no folder; give file:/// and the whole path, such as file:///srv/scap")?;
        let folder = Self { path, allowed: allowed.to_vec() };
        folder.root()?;
        Ok(folder)
    }

    /// Without symbolic links. Looked up each time: whoever replaces a folder by a link must not get anywhere.
    fn root(&self) -> Result<PathBuf, String> {
        let show = self.path.display();
        if self.allowed.is_empty() {
            return Err(format!(
                "its Address is the folder {show}, but the configuration allows none; add it to `sources.folders`"
            ));
        }
        let root = self.path.canonicalize().map_err(|error| format!("{show}: {error}"))?;
        // One that is not there allows nothing, and the others are as good as before.
        let allowed = self.allowed.iter().filter_map(|allowed| allowed.canonicalize().ok());
        if !allowed.into_iter().any(|allowed| root.starts_with(allowed)) {
            return Err(format!("{show} lies in none of the folders of `sources.folders`"));
        }
        if !root.is_dir() {
            return Err(format!("{show} is not a folder"));
        }
        Ok(root)
    }

    /// The folder of a group, without symbolic links.
    pub(super) fn group(&self, name: &str) -> Result<PathBuf, String> {
        let root = self.root()?;
        if name == ITSELF {
            return Ok(root);
        }
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            return Err(format!(
                "{name:?} is no group; groups are the names of the folders in {}",
                root.display()
            ));
        }
        let group = root.join(name).canonicalize().map_err(|error| format!("group {name}: {error}"))?;
        if !group.starts_with(&root) {
            return Err(format!("group {name} leads out of {}", root.display()));
        }
        if !group.is_dir() {
            return Err(format!("group {name} is not a folder"));
        }
        Ok(group)
    }

    /// The names of all groups, sorted; [`ITSELF`] is the first.
    pub(super) fn groups(&self) -> Result<Vec<String>, String> {
        let root = self.root()?;
        let mut groups = vec![ITSELF.to_owned()];
        for (name, path) in entries(&root).map_err(|error| format!("{}: {error}", root.display()))? {
            if path.is_dir() && self.group(&name).is_ok() {
                groups.push(name);
            }
        }
        Ok(groups)
    }

    /// The documents of a group, sorted by name: every file but those whose names begin with a dot and
    /// [`UNREACHABLE`]. Inner errors are about one file.
    pub(super) fn documents(&self, name: &str) -> Result<Vec<Result<Document, Complaint>>, String> {
        let (root, group) = (self.root()?, self.group(name)?);
        let entries = entries(&group).map_err(|error| format!("{}: {error}", group.display()))?;
        let documents = entries.into_iter().filter(|(file, _)| file != UNREACHABLE);
        let documents = documents.filter_map(|(file, path)| {
            let about = if name == ITSELF { file } else { format!("{name}/{file}") };
            match path.canonicalize() {
                Ok(path) if path.is_dir() => None,
                Ok(path) if !path.starts_with(&root) => {
                    let problem = format!("it is a link that leads out of {}", root.display());
                    Some(Err(Complaint { about, problem }))
                }
                Ok(path) => Some(Ok(Document::File(path, about))),
                // It was there a moment ago: renamed, or removed.
                Err(error) if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() => {
                    None
                }
                Err(error) => Some(Err(Complaint { about, problem: format!("it cannot be read: {error}") })),
            }
        });
        Ok(documents.collect())
    }
}

/// Names and paths, sorted, without those that begin with a dot or are no text.
fn entries(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
        {
            entries.push((name, entry.path()));
        }
    }
    entries.sort();
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn folder(path: &Path, allowed: &Path) -> Result<Folder, String> {
        Folder::new(&Url::from_file_path(path).unwrap(), &[allowed.to_owned()])
    }

    #[test]
    fn a_folder_is_read_only_if_it_lies_in_one_of_the_configuration() {
        let outside = tempfile::tempdir().unwrap();
        let inside = outside.path().join("scap");
        std::fs::create_dir_all(inside.join("web")).unwrap();
        symlink(outside.path(), inside.join("link")).unwrap();
        assert!(folder(&inside, &inside).is_ok() && folder(&inside.join("web"), &inside).is_ok());
        for path in [outside.path().to_owned(), inside.join("link"), inside.join("web/../..")] {
            let problem = folder(&path, &inside).unwrap_err();
            assert!(problem.contains("none of the folders of `sources.folders`"), "{problem}");
        }
        // A beginning of a name is no folder.
        std::fs::create_dir(outside.path().join("scapegoat")).unwrap();
        assert!(folder(&outside.path().join("scapegoat"), &inside).is_err());
        let none = Folder::new(&Url::from_file_path(&inside).unwrap(), &[]).unwrap_err();
        assert!(none.contains("add it to `sources.folders`"), "{none}");
    }

    #[test]
    fn a_group_is_a_folder_in_it_and_nothing_else() {
        let outside = tempfile::tempdir().unwrap();
        let inside = outside.path().join("scap");
        std::fs::create_dir_all(inside.join("web")).unwrap();
        std::fs::create_dir_all(inside.join(".hidden")).unwrap();
        std::fs::write(inside.join("file.xml"), "").unwrap();
        symlink(outside.path(), inside.join("link")).unwrap();
        let folder = folder(&inside, &inside).unwrap();
        for name in ["", "..", "web/..", "../scap", "/etc", "a\0b", ".hidden", "link", "missing", "file.xml"]
        {
            assert!(folder.group(name).is_err(), "{name:?}");
        }
        assert_eq!(folder.groups().unwrap(), [".", "web"]);
        assert!(folder.group("web").is_ok() && folder.group(".").is_ok());
    }

    #[test]
    fn a_link_out_of_the_folder_is_told_and_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        let inside = outside.path().join("scap");
        std::fs::create_dir_all(inside.join("web")).unwrap();
        std::fs::write(outside.path().join("secret.xml"), "canary").unwrap();
        symlink(outside.path().join("secret.xml"), inside.join("web/link.xml")).unwrap();
        for name in ["b.xml.gz", "a.arf", ".tmp.xml", UNREACHABLE] {
            std::fs::write(inside.join("web").join(name), "").unwrap();
        }
        let folder = folder(&inside, &inside).unwrap();
        let documents = folder.documents("web").unwrap();
        let names: Vec<_> = documents.iter().flatten().map(Document::name).collect();
        assert_eq!(names, ["web/a.arf", "web/b.xml.gz"]);
        let complaint = documents.into_iter().find_map(Result::err).unwrap();
        assert_eq!(complaint.about, "web/link.xml");
        assert!(complaint.problem.contains("leads out of"), "{}", complaint.problem);
    }
}
