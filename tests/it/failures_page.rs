//! docs/failures.md names the tests that show what it says.

use std::path::Path;

#[test]
fn every_test_that_the_page_of_failures_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/failures.md")).unwrap();
    // Between backticks: `file::test_name`, where file is one of tests/it or a path.
    let named: Vec<(&str, &str)> = page
        .lines()
        .filter(|line| line.starts_with('|'))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter_map(|word| word.split_once("::"))
        .collect();
    assert!(named.len() > 50, "{} tests are named", named.len());
    for (file, test) in named {
        let path = if Path::new(file).extension().is_some() {
            root.join(file)
        } else {
            root.join("tests/it").join(file).with_extension("rs")
        };
        let code = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(code.contains(&format!("fn {test}(")), "{file} has no test {test}");
    }
}
