-- Refuses a bad JobSchedule.Cron or DaysOfWeek at the statement that writes it, with the sentence the
-- daemon would say. The parser in src/schedule is the model: tests/data/cron-cases.txt is put to both,
-- and a change to one is a change to both.

-- One item of one field's list, such as '5', 'MON-FRI' or '*/15': its values, or what is wrong with it.
-- "shown" is the item as the operator wrote it where "item" is only a part of it (the 15 of 15W), and
-- then "item" has to be a single number or name.
create function vm.cron_item(field text, item text, shown text default null,
                             out members integer[], out problem text)
language plpgsql immutable parallel safe
set search_path = pg_catalog
as $$
declare
    low integer;
    high integer;
    top integer;      -- the largest number that may be written: weekday 7 is Sunday
    wraps boolean;    -- months differ in length, so days of a month do not run past the end
    wish text;
    names text[];
    size integer;
    range text collate "C" := item;
    step_text text collate "C";
    step integer := 1;
    stepped boolean := false;
    point text collate "C";
    points text[] collate "C";
    ends integer[] := '{}';
    first integer;
    last integer;
    named integer;
begin
    select f.low, f.high, f.top, f.wraps, f.wish, f.names
      into strict low, high, top, wraps, wish, names
      from (values
        ('second', 0, 59, 59, true, 'give 0 to 59', '{}'::text[]),
        ('minute', 0, 59, 59, true, 'give 0 to 59', '{}'),
        ('hour', 0, 23, 23, true, 'give 0 to 23', '{}'),
        ('day-of-month', 1, 31, 31, false, 'give 1 to 31, or L for the last day', '{}'),
        ('month', 1, 12, 12, true, 'give 1 to 12 or JAN to DEC',
         '{JANUARY,FEBRUARY,MARCH,APRIL,MAY,JUNE,JULY,AUGUST,SEPTEMBER,OCTOBER,NOVEMBER,DECEMBER}'),
        ('day-of-week', 0, 6, 7, true, 'give 0 to 7 (0 and 7 are Sunday) or SUN to SAT',
         '{SUNDAY,MONDAY,TUESDAY,WEDNESDAY,THURSDAY,FRIDAY,SATURDAY}'),
        ('year', 1970, 2099, 2099, false, 'give 1970 to 2099', '{}')
      ) as f(name, low, high, top, wraps, wish, names)
     where f.name = field;
    size := high - low + 1;

    if shown is not null then
        points := array[item];
    elsif item = '' then
        problem := format('%s '''' has an empty item; remove the extra comma', field);
        return;
    else
        if position('/' in item) > 0 then
            stepped := true;
            range := left(item, position('/' in item) - 1);
            step_text := substr(item, position('/' in item) + 1);
            if step_text !~ '^[0-9]+$' then
                problem := format('%s ''%s'' has no whole number after the ''/''; write a step such as ''*/5''', field, item);
                return;
            elsif step_text::numeric not between 1 and size then
                problem := format('%s ''%s'' steps by %s; give a step of 1 to %s, '
                    'or use Continuous with WaitInSeconds for other intervals', field, item, step_text, size);
                return;
            end if;
            step := step_text::numeric::integer;
        end if;
        if range = '*' then
            points := '{}';
        elsif position('-' in range) > 0 then
            points := array[left(range, position('-' in range) - 1), substr(range, position('-' in range) + 1)];
        else
            points := array[range];
        end if;
    end if;

    foreach point in array points loop
        if point ~ '^[0-9]+$' then
            if point::numeric not between low and top then
                problem := format('%s ''%s'' is out of range; %s', field, coalesce(shown, item), wish);
                return;
            end if;
            ends := ends || point::numeric::integer;
            continue;
        end if;
        select n.place - 1 + low into named
          from unnest(names) with ordinality as n(name, place)
         where length(point) >= 3 and starts_with(n.name, point)
         order by n.place limit 1;
        if not found then
            problem := format('%s ''%s'' %s', field, coalesce(shown, item), case
                when coalesce(shown, item) ~ '^H($|[/(])' or position('~' in coalesce(shown, item)) > 0
                    then 'asks for a random value; write a fixed one and set JitterSeconds'
                when position('?' in coalesce(shown, item)) > 0
                    then 'uses ''?'', which may only stand alone in day-of-month or day-of-week; write ''*'''
                else 'is not understood; ' || wish end);
            return;
        end if;
        ends := ends || named;
    end loop;

    first := coalesce(ends[1], low);
    last := coalesce(ends[2], case when cardinality(ends) = 0 then high else first end);
    if cardinality(ends) = 1 and stepped then
        first := low + (first - low) % size;
        last := high;
    elsif first > last then
        if not wraps then
            problem := format('%s ''%s'' runs backwards; write ''%s-%s,%s-%s'' or swap the ends',
                field, item, first, high, low, last);
            return;
        end if;
        last := low + (last - low) % size + case when first > high then 0 else size end;
        first := low + (first - low) % size;
    end if;
    select array_agg(distinct low + (v - low) % size) into members from generate_series(first, last, step) as v;
end
$$;

-- Null when the expression can be scheduled, else the sentence that says what to write instead.
-- Given this year, an expression whose year field lies in the past is refused too.
create function vm.cron_problem(expression text, this_year integer default null) returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog
as $$
declare
    upper_text text collate "C" := btrim(upper(expression collate "C"), E' \t\n\r\f');
    fields text[] collate "C";
    field_names constant text[] := '{second,minute,hour,day-of-month,month,day-of-week,year}';
    place integer;
    entry text collate "C";
    problem text;
    members integer[];
    months integer[] := '{}';
    years integer[] := '{}';
    month_days integer[] := '{}';
    before_last integer[] := '{}';
    nearest integer[] := '{}';     -- the n of nW
    last_weekday boolean := false; -- LW
    week_days integer[] := '{}';
    nth integer[] := '{}';         -- FRI#2 as 2 * 7 + 5
    last_of integer[] := '{}';     -- the 5 of FRIL
    either boolean;
    year integer;
    month integer;
    length integer;
    weekday integer;
    targets integer[];             -- where nW and LW fall this month
    by_month boolean;
    by_week boolean;
begin
    if expression is null then
        return null;
    elsif octet_length(expression) > 256 then
        return format('the cron expression has %s bytes, more than 256; split it into several schedules',
            octet_length(expression));
    elsif upper_text = '' then
        return 'the cron expression is empty; give five fields such as ''30 2 * * *'' '
            '(minute hour day-of-month month day-of-week), or @daily';
    elsif starts_with(upper_text, 'TZ=') or starts_with(upper_text, 'CRON_TZ=') then
        return format('the cron expression ''%s'' cannot be used; '
            'leave the zone out and set JobSchedule.TimeZone', expression);
    elsif starts_with(upper_text, '@') then
        if upper_text in ('@YEARLY', '@ANNUALLY', '@MONTHLY', '@WEEKLY', '@DAILY', '@MIDNIGHT', '@HOURLY') then
            return null;
        end if;
        return format('the cron expression ''%s'' cannot be used; %s', expression, case
            when upper_text = '@REBOOT' then 'to run at each start of a runner set JobConfig.AutoStart'
            when starts_with(upper_text, '@EVERY')
                then 'to repeat at a fixed distance set JobConfig.Continuous and WaitInSeconds'
            else 'give @yearly, @monthly, @weekly, @daily or @hourly, or five fields' end);
    end if;

    fields := regexp_split_to_array(upper_text, E'[ \t\n\r\f]+');
    if cardinality(fields) not between 5 and 7 then
        return format('the cron expression ''%s'' has %s fields; '
            'give 5 (minute hour day-of-month month day-of-week), '
            '6 (second first) or 7 (second first, year last)', expression, cardinality(fields));
    end if;
    if cardinality(fields) = 5 then
        fields := '0'::text || fields;
    end if;
    if cardinality(fields) = 6 then
        fields := fields || '*'::text;
    end if;
    either := fields[4] <> '?' and fields[6] <> '?'
        and not starts_with(fields[4], '*') and not starts_with(fields[6], '*');

    foreach place in array '{1,2,3,5,7,4,6}'::integer[] loop
        if place in (4, 6) and fields[place] = '?' then
            fields[place] := '*';
        end if;
        foreach entry in array string_to_array(fields[place], ',') loop
            if place = 4 and entry = 'LW' then
                last_weekday := true;
            elsif place = 4 and entry = 'L' then
                before_last := before_last || 0;
            elsif place = 4 and starts_with(entry, 'L-') then
                if substr(entry, 3) !~ '^[0-9]+$' or substr(entry, 3)::numeric not between 1 and 30 then
                    return format('day-of-month ''%s'' is out of range; '
                        'give L-1 to L-30, the days before the last', entry);
                end if;
                before_last := before_last || substr(entry, 3)::numeric::integer;
            elsif place = 4 and right(entry, 1) = 'W' then
                select i.problem, i.members into problem, members
                  from vm.cron_item('day-of-month', left(entry, -1), entry) as i;
                nearest := nearest || members;
            elsif place = 6 and entry = 'L' then
                return 'day-of-week ''L'' could mean two things; '
                    'write SAT for Saturdays or SATL for the month''s last Saturday';
            elsif place = 6 and right(entry, 1) = 'L' then
                select i.problem, i.members into problem, members
                  from vm.cron_item('day-of-week', left(entry, -1), entry) as i;
                last_of := last_of || members;
            elsif place = 6 and position('#' in entry) > 0 then
                select i.problem, i.members into problem, members
                  from vm.cron_item('day-of-week', split_part(entry, '#', 1), entry) as i;
                if problem is null and substr(entry, position('#' in entry) + 1) !~ '^[1-5]$' then
                    return format('day-of-week ''%s'' is not understood; give #1 to #5, such as FRI#2', entry);
                end if;
                if problem is null then
                    nth := nth || (right(entry, 1)::integer * 7 + members[1]);
                end if;
            else
                select i.problem, i.members into problem, members
                  from vm.cron_item(field_names[place], entry) as i;
                case place
                    when 4 then month_days := month_days || members;
                    when 5 then months := months || members;
                    when 6 then week_days := week_days || members;
                    when 7 then years := years || members;
                    else null;
                end case;
            end if;
            if problem is not null then
                return problem;
            end if;
        end loop;
    end loop;

    years := array(select distinct y from unnest(years) as y order by y);
    months := array(select distinct m from unnest(months) as m order by m);

    -- Does any day fit? Nearly always the first month looked at has one; only what never fires, such as
    -- 30 February, is searched to the end.
    foreach year in array years loop
        foreach month in array months loop
            weekday := extract(dow from make_date(year, month, 1));
            length := extract(day from make_date(year, month, 1) + interval '1 month - 1 day');
            select array_agg(case (weekday + n - 1) % 7
                    when 6 then case when n = 1 then 3 else n - 1 end
                    when 0 then case when n = length then n - 2 else n + 1 end
                    else n end)
              into targets
              from unnest(nearest || case when last_weekday then array[length] else '{}' end) as n
             where n <= length;
            for day in 1..length loop
                by_month := day = any (month_days) or length - day = any (before_last)
                    or coalesce(day = any (targets), false);
                by_week := weekday = any (week_days)
                    or ((day - 1) / 7 + 1) * 7 + weekday = any (nth)
                    or (weekday = any (last_of) and day + 7 > length);
                if (by_month and by_week) or (either and (by_month or by_week)) then
                    if this_year > years[cardinality(years)] then
                        return format('the cron expression ''%s'' never fires again: its last year has passed; '
                            'give a later year or leave the year out', expression);
                    end if;
                    return null;
                end if;
                weekday := (weekday + 1) % 7;
            end loop;
        end loop;
    end loop;
    return format('the cron expression ''%s'' never fires: no day from 1970 to 2099 fits its day, month and year; '
        'for the last day of a month write L', expression);
end
$$;

-- Null when DaysOfWeek is made of the digits 1 (Sunday) to 7 (Saturday), else what to write instead.
-- Null and blank mean every day.
create function vm.days_of_week_problem(days text) returns text
language sql immutable parallel safe
set search_path = pg_catalog
as $$
    select case
        when days is null or btrim(days, ' ') = '' or translate(days, ', ', '') collate "C" ~ '^[1-7]+$' then null
        else format('DaysOfWeek ''%s'' is not understood; give digits from 1 (Sunday) to 7 (Saturday) '
            'such as ''246'' or ''2,4,6'', or leave it empty for every day', left(days, 40))
    end
$$;
