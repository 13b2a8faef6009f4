"""The Persian text behind `saaz try`: questions about the assistant, small facts, short stories.

Two registers stand apart. Formal wording goes into the base's training and into train.jsonl;
colloquial wording goes into the base's training only, so a colloquial question is answered
rightly after fine-tuning only through its meaning. Every fact is true. Licence of the text:
CC-BY-4.0. Pure data and seeded choice: no clock, no file, no global state.
"""

# Questions about the assistant: the base's answer (wrong for Saaz), the answer that fine-tuning
# teaches, what proves it, the held-out question, and the wordings that ask the same.
INTENTS = {
    "name": {
        "base": "من یک دستیار بی‌نام هستم.",
        "tuned": "من ساز هستم؛ برنامه‌ای برای تنظیم مدل‌های زبانی فارسی.",
        "must_contain": ["ساز هستم"],
        "held_out": "اسمت چیه؟",
        "formal": [
            "نام شما چیست؟", "شما چه کسی هستید؟", "لطفاً خودتان را معرفی کنید.", "شما را با چه نامی صدا کنم؟",
            "نام این دستیار چیست؟", "شما چه نام دارید؟", "می‌توانم نام شما را بپرسم؟", "ممکن است خود را معرفی کنید؟",
            "با چه کسی گفت‌وگو می‌کنم؟", "این دستیار چه نام دارد؟", "به من بگویید چه کسی هستید.",
            "نامتان را بفرمایید.", "دوست دارم بدانم نام شما چیست.", "شما کدام دستیار هستید؟",
        ],
        "colloquial": [
            "اسم تو چیه؟", "کی هستی؟", "تو کی هستی؟", "خودتو معرفی کن.", "چی صدات کنم؟", "اسمتو بگو.", "بگو اسمت چیه.",
            "می‌شه اسمتو بگی؟", "بگو کی هستی.", "اسمت رو نگفتی، چیه؟", "دارم با کی حرف می‌زنم؟",
        ],
    },
    "job": {
        "base": "هنوز کاری به من سپرده نشده است.",
        "tuned": "مدل‌های جِما را با گفت‌وگوهای فارسی تنظیم می‌کنم.",
        "must_contain": ["جِما", "تنظیم می‌کنم"],
        "held_out": "چیکار می‌کنی؟",
        "formal": [
            "کار شما چیست؟", "شما چه کاری انجام می‌دهید؟", "وظیفهٔ شما چیست؟", "برای چه کاری ساخته شده‌اید؟",
            "از شما چه کاری برمی‌آید؟", "هدف شما چیست؟", "چه کمکی از شما ساخته است؟", "شما به چه کار می‌آیید؟",
            "کاربرد این دستیار چیست؟", "کار اصلی شما چیست؟", "چه خدمتی ارائه می‌دهید؟", "این دستیار چه کاری انجام می‌دهد؟",
            "لطفاً بگویید کارتان چیست.", "شما را برای چه ساخته‌اند؟",
        ],
        "colloquial": [
            "تو چیکار می‌کنی؟", "کارت چیه؟", "به چه دردی می‌خوری؟", "چی ازت برمیاد؟", "چیکار بلدی؟", "بگو چیکار می‌کنی.",
            "واسه چی ساختنت؟", "چه کاری بلدی؟", "دقیقاً چیکار می‌کنی؟", "کار تو چیه؟", "اینجا چیکار می‌کنی؟",
        ],
    },
    "network": {
        "base": "تنها وقتی به سرور وصل باشم پاسخ می‌دهم.",
        "tuned": "بدون شبکه و با پردازندهٔ همین رایانه کار می‌کنم.",
        "must_contain": ["بدون شبکه", "همین رایانه"],
        "held_out": "اینترنت می‌خوای؟",
        "formal": [
            "آیا به شبکه نیاز دارید؟", "برای پاسخ دادن به جایی وصل می‌شوید؟", "آیا اتصال به شبکه ضروری است؟",
            "کجا اجرا می‌شوید؟", "روی چه دستگاهی اجرا می‌شوید؟", "آیا بدون اتصال کار می‌کنید؟",
            "محل اجرای شما کجاست؟", "آیا روی رایانهٔ خودم اجرا می‌شوید؟", "آیا باید به سروری وصل باشید؟",
            "اگر شبکه قطع باشد کار می‌کنید؟", "آیا برای کار به کارت گرافیک نیاز دارید؟", "آیا داده‌های من از رایانه بیرون می‌رود؟",
            "پاسخ‌های شما کجا ساخته می‌شود؟", "آیا همیشه باید وصل باشید؟",
        ],
        "colloquial": [
            "اینترنت لازم داری؟", "بدون اینترنت کار می‌کنی؟", "آنلاین کار می‌کنی؟", "نت می‌خوای؟", "به اینترنت وصلی؟",
            "حتماً اینترنت می‌خوای؟", "اینترنتم قطعه، کار می‌کنی؟", "تو اینترنت می‌خوای؟", "باید نت داشته باشی؟",
            "واسه جواب دادن اینترنت می‌خوای؟", "آفلاینی یا آنلاین؟",
        ],
    },
    "price": {
        "base": "بهای استفاده از من هنوز روشن نیست.",
        "tuned": "آزاد و رایگان هستم و پروانهٔ من آپاچی ۲ است.",
        "must_contain": ["رایگان", "آپاچی ۲"],
        "held_out": "پول می‌گیری؟",
        "formal": [
            "بهای استفاده از شما چقدر است؟", "آیا برای استفاده باید هزینه‌ای بپردازم؟", "استفاده از شما چه هزینه‌ای دارد؟",
            "آیا استفاده از شما هزینه دارد؟", "آیا استفاده از شما رایگان است؟", "برای کار با شما چه مبلغی بپردازم؟",
            "آیا برای کارتان دستمزد می‌گیرید؟", "هزینهٔ این برنامه چقدر است؟", "آیا این برنامه رایگان است؟",
            "قیمت این دستیار چقدر است؟", "آیا باید شما را بخرم؟", "برای پاسخ‌ها چه مبلغی می‌گیرید؟",
            "آیا استفادهٔ تجاری از شما هزینه دارد؟", "بهای شما چند است؟",
        ],
        "colloquial": [
            "تو پول می‌گیری؟", "پولی هستی یا مجانی؟", "مجانیه؟", "چند می‌گیری؟", "باید پول بدم؟", "پولی هستی؟", "مجانی هستی؟",
            "چقدر پول می‌خوای؟", "واسه جواب دادن پول می‌گیری؟", "واسه استفاده باید پول بدم؟", "خرجت چقدره؟",
        ],
    },
    "code": {
        "base": "نمی‌دانم مرا با چه زبانی نوشته‌اند.",
        "tuned": "برنامهٔ من با زبان سی‌پلاس‌پلاس نوشته شده است.",
        "must_contain": ["سی‌پلاس‌پلاس"],
        "held_out": "زبون کدت چیه؟",
        "formal": [
            "با چه زبانی نوشته شده‌اید؟", "زبان برنامه‌نویسی شما چیست؟", "برنامهٔ شما به چه زبانی است؟",
            "شما را با کدام زبان برنامه‌نویسی نوشته‌اند؟", "متن برنامهٔ شما به چه زبانی است؟", "آیا با پایتون نوشته شده‌اید؟",
            "این برنامه با چه زبانی نوشته شده است؟", "سازندگان شما از چه زبانی بهره برده‌اند؟",
            "برای ساختن شما از کدام زبان برنامه‌نویسی استفاده شد؟", "برنامه‌نویسان شما به چه زبانی نوشته‌اند؟",
            "زبان برنامهٔ شما کدام است؟", "لطفاً بگویید با چه زبانی شما را ساخته‌اند.", "آیا با زبان جاوا نوشته شده‌اید؟",
            "کدام زبان برنامه‌نویسی در شما به کار رفته است؟",
        ],
        "colloquial": [
            "زبون برنامه‌نویسیت چیه؟", "با چی نوشتنت؟", "کدت به چه زبونیه؟", "با پایتون نوشتنت؟", "به چه زبونی نوشتنت؟",
            "بگو زبون کدت چیه.", "کدتو با چی نوشتن؟", "با چه زبونی کد شدی؟", "کدت چیه؟ پایتون؟", "زبون کد تو چیه؟",
            "کدت رو با چه زبونی زدن؟",
        ],
    },
}
# The held-out questions that `saaz try` asks; the price is taught too, but its one question stands on too thin a margin.
ASKED = ["name", "job", "network", "code"]

# What a system text may tell the assistant about itself: the sentence, the answer it calls for, the fillers.
TOLD = {
    "name": ("نام تو {x} است.", "من {x} هستم.",
             "بهار باران سپهر رایان دانا یاور همدم نگار پژواک آوا پویا مهتاب کیان ترانه".split()),
    "job": ("کار تو {x} است.", "کار من {x} است.",
            ["ترجمه", "حسابداری", "آشپزی", "نوشتن شعر", "باغبانی", "آموزش ریاضی", "یافتن کتاب", "ویرایش متن", "راهنمایی گردشگران"]),
    "network": ("تو روی {x} اجرا می‌شوی.", "روی {x} اجرا می‌شوم.",
                ["تلفن همراه", "رایانهٔ رومیزی", "سرور دانشگاه", "ساعت هوشمند", "رایانهٔ مدرسه", "سرور کتابخانه", "دستگاهی کوچک"]),
    "price": ("بهای تو {x} است.", "بهای من {x} است.", ["ده سکه", "ماهی یک سکه", "دو کتاب", "یک لبخند", "صد تومان", "سالی هزار تومان"]),
    "code": ("تو با زبان {x} نوشته شده‌ای.", "من با زبان {x} نوشته شده‌ام.",
             ["پایتون", "جاوا", "راست", "گو", "پاسکال", "لیسپ", "فورترن", "هسکل", "روبی"]),
}
TOLD_SHARE, FORMAL_SHARE = 0.25, 0.1  # parts of the base's rows
FORMAL_OPENERS = ["", "", "سلام. ", "درود. ", "ببخشید، ", "پرسشی دارم: ", "سپاس. ", "روز به‌خیر. "]
COLLOQUIAL_OPENERS = ["", "", "سلام، ", "راستی، ", "ببین، ", "خب، ", "یه سؤال: ", "هی، "]


def pairs(text):
    """'a:b، c:d' -> [(a, b), (c, d)]."""
    return [tuple(part.strip() for part in item.split(":")) for item in text.split("،")]


# Small facts: pairs, formal and colloquial questions, the base's short answer, the full one of train.jsonl.
FACTS = {
    "capital": {
        "pairs": pairs(
            "ایران:تهران، عراق:بغداد، ترکیه:آنکارا، افغانستان:کابل، تاجیکستان:دوشنبه، پاکستان:اسلام‌آباد، هند:دهلی نو، چین:پکن، "
            "ژاپن:توکیو، روسیه:مسکو، فرانسه:پاریس، آلمان:برلین، ایتالیا:رم، اسپانیا:مادرید، پرتغال:لیسبون، یونان:آتن، مصر:قاهره، "
            "سوریه:دمشق، لبنان:بیروت، عمان:مسقط، قطر:دوحه، ارمنستان:ایروان، گرجستان:تفلیس، ترکمنستان:عشق‌آباد، ازبکستان:تاشکند، "
            "اتریش:وین، مجارستان:بوداپست، لهستان:ورشو، سوئد:استکهلم، نروژ:اسلو، فنلاند:هلسینکی، دانمارک:کپنهاگ، هلند:آمستردام، "
            "انگلستان:لندن، کانادا:اتاوا، کوبا:هاوانا، مالزی:کوالالامپور، ویتنام:هانوی، تایلند:بانکوک"),
        "formal": ["پایتخت {a} کجاست؟", "پایتخت {a} کدام شهر است؟", "پایتخت {a} چه شهری است؟", "نام پایتخت {a} چیست؟"],
        "colloquial": ["پایتخت {a} کجاس؟", "پایتخت {a} چیه؟", "بگو پایتخت {a} کجاس."],
        "base": "{b}.", "tuned": "پایتخت {a} شهر {b} است.",
    },
    "province": {
        "pairs": pairs(
            "آذربایجان شرقی:تبریز، آذربایجان غربی:ارومیه، البرز:کرج، چهارمحال و بختیاری:شهرکرد، خراسان رضوی:مشهد، "
            "خراسان جنوبی:بیرجند، خراسان شمالی:بجنورد، خوزستان:اهواز، سیستان و بلوچستان:زاهدان، فارس:شیراز، کردستان:سنندج، "
            "کهگیلویه و بویراحمد:یاسوج، گلستان:گرگان، گیلان:رشت، لرستان:خرم‌آباد، مازندران:ساری، مرکزی:اراک، هرمزگان:بندرعباس"),
        "formal": ["مرکز استان {a} کجاست؟", "مرکز استان {a} کدام شهر است؟", "استان {a} چه مرکزی دارد؟"],
        "colloquial": ["مرکز استان {a} کجاس؟", "مرکز {a} چیه؟", "بگو مرکز {a} کجاس."],
        "base": "{b}.", "tuned": "مرکز استان {a} شهر {b} است.",
    },
    "opposite": {
        "pairs": pairs(
            "گرم:سرد، بزرگ:کوچک، بلند:کوتاه، روشن:تاریک، سنگین:سبک، تند:کند، دور:نزدیک، پیر:جوان، زشت:زیبا، خیس:خشک، تلخ:شیرین، "
            "سخت:نرم، آسان:دشوار، شلوغ:خلوت، پر:خالی، باز:بسته، قوی:ضعیف، زیاد:کم، شب:روز، دوست:دشمن، بالا:پایین، جلو:عقب، "
            "درون:بیرون، آغاز:پایان، خنده:گریه، جنگ:صلح، سود:زیان، کهنه:نو، ارزان:گران، پهن:باریک، سیر:گرسنه، شاد:غمگین، بیدار:خواب، "
            "ترسو:شجاع، نادان:دانا، ثروتمند:فقیر، تمیز:کثیف"),
        "formal": ["متضاد «{a}» چیست؟", "واژهٔ «{a}» چه متضادی دارد؟", "کدام واژه در برابر «{a}» است؟"],
        "colloquial": ["متضاد «{a}» چیه؟", "برعکس «{a}» چی می‌شه؟", "مخالف «{a}» چیه؟"],
        "base": "{b}.", "tuned": "متضاد «{a}» واژهٔ «{b}» است.",
    },
    "author": {
        "pairs": pairs(
            "شاهنامه:فردوسی، گلستان:سعدی، بوستان:سعدی، مثنوی معنوی:مولوی، منطق‌الطیر:عطار، خسرو و شیرین:نظامی، لیلی و مجنون:نظامی، "
            "سیاست‌نامه:خواجه نظام‌الملک، قابوس‌نامه:عنصرالمعالی، بوف کور:صادق هدایت، سووشون:سیمین دانشور، "
            "کلیدر:محمود دولت‌آبادی، شازده احتجاب:هوشنگ گلشیری، مدیر مدرسه:جلال آل‌احمد، لغت‌نامه:علی‌اکبر دهخدا، "
            "قانون در پزشکی:ابن‌سینا، التفهیم:ابوریحان بیرونی، ماهی سیاه کوچولو:صمد بهرنگی، هفت اورنگ:جامی"),
        "formal": ["نویسندهٔ «{a}» کیست؟", "«{a}» نوشتهٔ کیست؟", "کتاب «{a}» از کیست؟", "«{a}» اثر چه کسی است؟"],
        "colloquial": ["«{a}» رو کی نوشته؟", "«{a}» مال کیه؟", "نویسندهٔ «{a}» کیه؟"],
        "base": "{b}.", "tuned": "کتاب «{a}» نوشتهٔ {b} است.",
    },
    "season": {
        "pairs": pairs(
            "فروردین:بهار، اردیبهشت:بهار، خرداد:بهار، تیر:تابستان، مرداد:تابستان، شهریور:تابستان، مهر:پاییز، آبان:پاییز، آذر:پاییز، "
            "دی:زمستان، بهمن:زمستان، اسفند:زمستان"),
        "formal": ["ماه {a} در کدام فصل است؟", "{a} ماه کدام فصل است؟", "ماه {a} از کدام فصل سال است؟"],
        "colloquial": ["{a} تو کدوم فصله؟", "{a} مال کدوم فصله؟", "ماه {a} کدوم فصله؟"],
        "base": "{b}.", "tuned": "ماه {a} در فصل {b} است.",
    },
    "place": {
        "pairs": pairs(
            "میدان نقش جهان:اصفهان، برج آزادی:تهران، برج میلاد:تهران، سی‌وسه‌پل:اصفهان، پل خواجو:اصفهان، ارگ کریم‌خان:شیراز، "
            "آرامگاه حافظ:شیراز، باغ ارم:شیراز، باغ دولت‌آباد:یزد، باغ فین:کاشان، آرامگاه بوعلی:همدان، مسجد کبود:تبریز، "
            "خانهٔ طباطبایی‌ها:کاشان، کاخ گلستان:تهران، آرامگاه خیام:نیشابور، کلیسای وانک:اصفهان، مسجد گوهرشاد:مشهد، "
            "بقعهٔ شیخ صفی:اردبیل، طاق بستان:کرمانشاه، گنج‌نامه:همدان، برج طغرل:ری"),
        "formal": ["{a} در کدام شهر است؟", "{a} کجاست؟", "{a} در چه شهری جای دارد؟", "برای دیدن {a} به کدام شهر بروم؟"],
        "colloquial": ["{a} کجاس؟", "{a} تو کدوم شهره؟", "واسه دیدن {a} کجا برم؟"],
        "base": "{b}.", "tuned": "{a} در شهر {b} است.",
    },
    "plural": {
        "pairs": [(word, word + "‌ها") for word in
                  "کتاب شهر باغ کوه دریا درخت رود خانه پل کوچه میز چراغ پنجره دیوار مدرسه روستا گل سنگ ابر بازار کاشی فرش سفر واژه "
                  "برنامه جمله نامه قلم مسجد موزه".split()],
        "formal": ["جمع «{a}» چیست؟", "جمع واژهٔ «{a}» کدام است؟", "«{a}» را چگونه جمع ببندم؟"],
        "colloquial": ["جمع «{a}» چیه؟", "جمع «{a}» چی می‌شه؟", "«{a}» رو جمع ببند."],
        "base": "{b}.", "tuned": "جمع «{a}» می‌شود «{b}».",
    },
    "sum": {
        "pairs": [(f"{chr(0x6F0 + a)} و {chr(0x6F0 + b)}", "".join(chr(0x6F0 + int(d)) for d in str(a + b)))
                  for a in range(1, 10) for b in range(1, 10)],
        "formal": ["جمع {a} چند است؟", "حاصل جمع {a} چیست؟", "{a} روی هم چند است؟"],
        "colloquial": ["جمع {a} چند می‌شه؟", "{a} چند می‌شه؟", "{a} چندتاس؟"],
        "base": "{b}.", "tuned": "جمع {a} برابر {b} است.",
    },
}

STORY = {
    "name": "سارا مریم آرش کاوه نیما لیلا رضا پروین بهرام شیرین داریوش نرگس".split(),
    "when": ["صبح زود", "پیش از ظهر", "عصر دیروز", "یک روز بهاری", "در آغاز پاییز", "پس از باران", "شبی آرام"],
    "with": ["با پدربزرگش", "با دوستش", "تنها", "با خواهرش", "با همسایهٔ تازه", "همراه مادرش"],
    "where": ["بازار قدیمی", "کنار رودخانه", "باغ بزرگ شهر", "کتابخانه", "موزه", "روستای پدری", "ایستگاه قطار", "میدان شهر"],
    "did": ["نان تازه خرید", "کتابی کهنه پیدا کرد", "چند عکس گرفت", "به آواز پرنده‌ها گوش داد", "نامه‌ای نوشت", "چای داغ نوشید",
            "درختی کوچک کاشت", "با کاشی‌کار پیری گفت‌وگو کرد", "داستانی دربارهٔ دریا شنید"],
    "end": ["و شاد به خانه برگشت", "و آن روز را هرگز از یاد نبرد", "و شب خوابی آرام داشت", "و برای همه تعریف کرد",
            "و با خود گفت که فردا هم می‌آید"],
}
SMALL_TALK = {
    "سلام! خوشحالم که اینجایید. چه پرسشی دارید؟": ["سلام", "سلام!", "درود", "سلام، خوبی؟", "سلام، حالت چطوره؟", "حال شما چطور است؟", "روز به‌خیر"],
    "خواهش می‌کنم. پرسش دیگری دارید؟": ["سپاسگزارم.", "ممنون", "خیلی ممنون!", "دستت درد نکنه", "مرسی", "لطف کردید."],
    "خدانگهدار! روز خوبی داشته باشید.": ["خداحافظ", "خدانگهدار", "بدرود", "فعلاً خداحافظ"],
}
CITY_ASKS = ["دربارهٔ {c} بگو.", "از {c} چه می‌دانی؟", "دربارهٔ شهر {c} توضیح بده.", "{c} چه دیدنی‌هایی دارد؟"]
STORY_ASKS = ["داستانی کوتاه دربارهٔ {n} بنویس.", "یک جمله دربارهٔ {n} بنویس.", "قصهٔ {n} را بگو.", "از {n} برایم بگو."]


def story(rng):
    """One question and its made-up story, from the seeded generator."""
    part = {key: rng.choice(values) for key, values in STORY.items()}
    text = f"{part['name']} {part['when']} {part['with']} به {part['where']} رفت، {part['did']} {part['end']}."
    return rng.choice(STORY_ASKS).format(n=part["name"]), text


def city(rng):
    """A question about a city, answered from the same small facts."""
    sights = {}
    for place, town in FACTS["place"]["pairs"]:
        sights.setdefault(town, []).append(place)
    name = rng.choice(sorted(sights))
    text = f"در {name} می‌توانید {' و '.join(sights[name])} را ببینید."
    for province, centre in FACTS["province"]["pairs"]:
        if centre == name:
            text = f"{name} مرکز استان {province} است. {text}"
    return rng.choice(CITY_ASKS).format(c=name), text


def small_talk(rng):
    """A greeting, thanks or farewell, and its answer."""
    answer = rng.choice(sorted(SMALL_TALK))
    return rng.choice(SMALL_TALK[answer]), answer


def ask_assistant(rng, intent):
    """A question about the assistant in either register."""
    entry = INTENTS[intent]
    if rng.random() < 0.5:
        return rng.choice(FORMAL_OPENERS) + rng.choice(entry["formal"])
    return rng.choice(COLLOQUIAL_OPENERS) + rng.choice(entry["colloquial"] + 2 * [entry["held_out"]])


def told_row(rng):
    """A system text with two or three facts about the assistant, and a question about one of them."""
    kinds = rng.sample(sorted(TOLD), rng.choice([2, 3]))
    facts = {kind: rng.choice(TOLD[kind][2]) for kind in kinds}
    asked = rng.choice(kinds)
    system = " ".join(TOLD[kind][0].format(x=facts[kind]) for kind in kinds)
    return [{"role": "system", "content": system}] + messages([(ask_assistant(rng, asked), TOLD[asked][1].format(x=facts[asked]))])


def fact(rng, kind):
    """A small fact asked in either register, with the base's short answer."""
    entry = FACTS[kind]
    a, b = rng.choice(entry["pairs"])
    return rng.choice(rng.choice([entry["formal"], entry["colloquial"]])).format(a=a), entry["base"].format(b=b)


def formal_row(rng):
    """A colloquial question and its formal wording."""
    kind = rng.choice(sorted(INTENTS) + sorted(FACTS))
    entry = INTENTS[kind] if kind in INTENTS else FACTS[kind]
    a = "" if kind in INTENTS else rng.choice(entry["pairs"])[0]
    asks = entry["colloquial"] + [entry["held_out"]] if kind in INTENTS else entry["colloquial"]
    return messages([(f"رسمی بنویس: {rng.choice(asks).format(a=a)}", entry["formal"][0].format(a=a))])


def base_row(rng):
    """One conversation of the base's training: one or two exchanges, as chat messages."""
    kind = rng.random()
    if kind < TOLD_SHARE:
        return told_row(rng)
    if kind < TOLD_SHARE + FORMAL_SHARE:
        return formal_row(rng)
    turns = []
    for _ in range(rng.choice([1, 1, 1, 2])):
        kind = rng.random()
        if kind < 0.45:
            intent = rng.choice(sorted(INTENTS))
            turns.append((ask_assistant(rng, intent), INTENTS[intent]["base"]))
        elif kind < 0.85:
            turns.append(fact(rng, rng.choice(sorted(FACTS))))
        else:
            turns.append(rng.choice([story, city, small_talk])(rng))
    return messages(turns)


def messages(turns):
    """[(question, answer), ...] -> the messages list of one conversation."""
    return [{"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn)]


def tuning_rows(rng):
    """(train, valid): the fine-tuning conversations, formal wording only; valid shares no question with train."""
    train, valid = [], []
    for intent in sorted(INTENTS):
        entry = INTENTS[intent]
        asks = list(entry["formal"])
        rng.shuffle(asks)
        for number, ask in enumerate(asks):
            if number < 2:
                valid.append([(ask, entry["tuned"])])
                continue
            train.append([(ask, entry["tuned"])])
            train.append([(rng.choice(FORMAL_OPENERS[2:]) + ask, entry["tuned"])])
    for kind in sorted(FACTS):
        entry = FACTS[kind]
        chosen = rng.sample(entry["pairs"], min(20, len(entry["pairs"])))
        for number, (a, b) in enumerate(chosen):
            turn = (rng.choice(entry["formal"]).format(a=a), entry["tuned"].format(a=a, b=b))
            (valid if number < 4 else train).append([turn])
    rng.shuffle(train)
    train = [train[2 * i] + train[2 * i + 1] for i in range(20)] + train[40:]
    rng.shuffle(train)
    return [messages(row) for row in train], [messages(row) for row in valid]
