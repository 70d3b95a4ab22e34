//! Which hosts a group names.

use super::api::Form;

const TAG: &str = "tag-";

/// The parameters that choose the hosts of a group: asset groups by number, or tags. An error finishes "the group ".
pub(super) fn filter(group: &str) -> Result<Form, String> {
    let items: Vec<&str> = group.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    if items.is_empty() {
        return Err(
            "names nothing; give the number of an asset group, or tag- and the number or name of a tag"
                .to_owned(),
        );
    }
    let tags: Vec<&str> =
        items.iter().filter_map(|item| item.strip_prefix(TAG)).filter(|tag| !tag.is_empty()).collect();
    if tags.is_empty() {
        if let Some(odd) = items.iter().find(|item| !is_number(item)) {
            return Err(format!(
                "has `{odd}`, which is neither the number of an asset group nor tag- and the number or name of a tag"
            ));
        }
        return Ok(vec![("ag_ids", items.join(","))]);
    }
    if tags.len() != items.len() {
        return Err("mixes asset groups and tags; give either".to_owned());
    }
    let by_number = tags.iter().all(|tag| is_number(tag));
    if !by_number && tags.iter().any(|tag| is_number(tag)) {
        return Err("mixes numbers and names of tags; give either".to_owned());
    }
    Ok(vec![
        ("use_tags", "1".to_owned()),
        ("tag_set_by", if by_number { "id" } else { "name" }.to_owned()),
        ("tag_include_selector", "all".to_owned()),
        ("tag_set_include", tags.join(",")),
    ])
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_asset_groups_and_tags_say_so() {
        assert_eq!(filter(" 12, 13").unwrap(), [("ag_ids", "12,13".to_owned())]);
        let tags = filter("tag-5,tag-7").unwrap();
        assert_eq!((tags[1].1.as_str(), tags[3].1.as_str()), ("id", "5,7"));
        let tags = filter("tag-Web servers").unwrap();
        assert_eq!((tags[1].1.as_str(), tags[3].1.as_str()), ("name", "Web servers"));
        for bad in ["", " , ", "web-3", "tag-", "12,tag-5", "tag-5,tag-Web", "12;13"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}
