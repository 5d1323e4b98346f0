"""What people ask to type, and common words.

The common words let characters, sounds and spellings be met outside the commands' fixed wordings too; of English
words that sound alike mostly one is here. The last texts to type are held out (wording.HELD_OUT_TYPED).
"""

from autoglm.training.data.catalog import Language

TYPED: dict[Language, tuple[str, ...]] = {
    "zh": (
        "你好", "早上好", "晚上见", "谢谢", "明天见", "我在路上", "生日快乐", "马上到", "今天天气不错", "在吗",
        "吃饭了吗", "周末有空吗", "新年快乐", "一会见", "我到家了", "路上小心", "好久不见", "收到", "没问题", "辛苦了",
        "等我一下", "我想你了", "恭喜发财", "加油", "北京烤鸭", "火锅", "附近的咖啡店", "奶茶", "回家的路",
        "上海到广州的火车", "机票", "电影票", "天安门", "西湖", "火车站怎么走", "最近的医院", "超市", "红烧肉的做法",
        "学英语", "手机壳", "运动鞋", "牛仔裤", "儿童图书", "今晚吃什么", "几点下班", "我在开会", "下午三点见",
        "记得带伞", "帮我拿快递", "会议改到明天", "密码忘了", "到了给我打电话", "我同意", "请尽快回复", "祝你一路顺风",
        "武汉大学", "长江大桥", "流行歌曲", "笑话", "新闻", "晚安", "明天下午见", "今天吃火锅", "我马上到家",
        "附近的超市", "谢谢你帮我", "去北京的机票", "最近的咖啡店", "周末快乐", "路上见",
    ),
    "en": (
        "hello", "good morning", "see you tonight", "thank you", "see you tomorrow", "on my way", "happy birthday",
        "coming soon", "nice weather today", "how are you", "call me later", "happy new year", "I am home", "take care",
        "long time no see", "got it", "no problem", "well done", "wait for me", "I miss you", "good luck",
        "congratulations", "pizza near me", "coffee shop", "bubble tea", "way home", "train to London", "cheap flights",
        "movie tickets", "Central Park", "Times Square", "how to get to the station", "nearest hospital", "supermarket",
        "chicken soup recipe", "learn English", "phone case", "running shoes", "blue jeans", "children's books",
        "what is for dinner", "when do you finish work", "I am in a meeting", "meet at three", "bring an umbrella",
        "pick up the parcel", "meeting moved to Friday", "forgot my password", "ring me when you get there", "I agree",
        "please reply soon", "have a safe trip", "Oxford", "Golden Gate Bridge", "pop songs", "funny jokes",
        "latest news", "let us have lunch", "running late", "be right back", "good night", "see you soon",
        "meeting tomorrow morning", "happy new home", "coffee near me", "I am on my way home", "nearest station",
        "please call me", "train tickets to Oxford", "lunch at three",
    ),
}  # fmt: skip

_ZH = """
告诉 数字 哪儿 页面 退出 回去 没有 请问 儿童 表面 时间 今天 明天 昨天 早上 中午 晚上 朋友 老师 学生 学习 工作 电影
音量 声音 关机 开始 结束 停止 继续 上面 下面 里面 外面 左右 大小 多少 什么 为什么 怎么 可以 不要 需要 知道 喜欢 看见
听到 说话 写字 打字 发送 删除 保存 搜索 下载 更新 帮助 问题 答案 一二三 四五六 七八九 十 我们 你们 他们 这个 那个 现在
以后 应用 图标 屏幕 手机 开关
"""
_EN = """
a able about above across act add address after afternoon again age ago agree air all almost alone along already also
always am an and angry animal another answer any anyone anything app apps April are area arm arrive art as ask at
August autumn away baby back bad bag ball bank bath battery be beautiful because bed before begin behind believe below
best better between big bird birthday bit black blood board boat body book both bottle bottom box boy bread break
breakfast bridge bright bring brother brown build building burn bus business busy but button by cake called can
cancel car card care carry cat catch centre chair chance change cheap check cheese chicken child children choose
church city class clean clear clever climb clock close cloth clothes cloud coat coffee cold come common company
complete continue cook cool corner correct cost could country couple course cover cow cry cup current cut dance dark
date daughter day dead December decide deep delete desk did die different difficult dinner dirty do doctor does dog
done door double down download draw dream dress drink drive driver drop dry during each ear early earth east easy eat
education egg eleven else email empty end engine English enjoy enough enter evening ever every everyone everything
exactly example excuse eye face fact fall family famous far farm fast father favourite February feel feet few field
fight file fill film final find fine finger finish fire first fish five fix floor fly follow food foot for forest
forget form forward four free French fresh Friday friend from front fruit full fun funny game garden gate get girl
give glad glass go gold good grass great green ground group grow guess hair half hand happen happy hard has hat have
he head health healthy hear heart heavy help her here high hill him his history hit hold holiday home hope horse
hospital hot hotel hour house how hundred hungry hurry hurt husband I ice idea if important in inside interest into
is island it January job join July jump June just keep key kind king kitchen know lady land language large last late
later laugh law lead learn least leave left leg less lesson let letter library lie life lift light like line list
listen little live long look lose lost lot loud love low lunch machine man many map March market married matter may
maybe me meal mean measure medicine member menu message middle might mile milk mind minute miss mistake moment Monday
money month moon more morning most mother mountain mouth move much museum music must my name near nearly neck
need never new news next nice night nine no noise none north nose not note nothing November now number October of off
offer office often oil old on once one only open or orange order other our out outside over own page paint paper
parent park party pass past pay pen people perhaps person phone photo piano picture piece pink place plan plant plate
play please pocket point police poor possible post power practice present press pretty price problem promise pull
push put quarter queen question quick quiet quite rain read ready real really reason receive record red remember
repeat rest restaurant return rice rich ring river road rock room round rule run sad safe said salt same sand Saturday
save say school science screen search second see seem sell send sentence September serious service set seven several
shall shape share she sheep ship shirt shoe shop short should shoulder show shut sick side sign silver simple since
sing sister sit six size skill sky sleep slow small smell smile smoke snow so soap soft some someone something
sometimes song soon sorry sort sound soup south space speak special spell spend spoon sport spring square stand star
start state station stay step still stone stop story straight strange street strong student study such sugar suit
summer sun Sunday sure surprise sweet swim table take talk tall taste taxi teach teacher tell ten tennis test than
thank that the them then there these they thick thin thing think third thirsty this those though thousand three
through Thursday ticket time tired title to today together tomorrow tonight too tooth top total touch towards town
train travel tree trip trouble true try Tuesday turn twelve twenty twice two type umbrella uncle under understand
university until up update upon us use usually vegetable very village visit voice volume wait walk wall want warm was
wash watch water way we wear weather Wednesday week weekend welcome well went were west wet what wheel when where
whether which while white who whole why wide wife wild will win wind window wine winter wish with without woman
wonder wood word work world worry would write wrong year yellow yes yesterday yet you young your zoo
"""
LEXICON: dict[Language, tuple[str, ...]] = {"zh": tuple(_ZH.split()), "en": (*_EN.split(), "tell me")}
